"""Checkpoints: of a run, to continue it exactly, and of a model alone, to predict with it.

A run keeps full checkpoints in `RUN/checkpoints/STEP` (the latest, and every n epochs) and
`RUN/best/STEP` (lowest test error). Each holds the parameters, their running average if there is
one, the optimiser's state, the step, the random key, the position in the data and the
configuration. A model alone is a folder with `model.json` and `params`. Arrays are written with
Orbax, under another name until they are complete, so that what has a checkpoint's name is whole.
"""

import contextlib
import dataclasses
import itertools
import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import jax
import numpy as np
import orbax.checkpoint as ocp
from orbax.checkpoint.checkpoint_managers import preservation_policy as policy

from posemamba_jax import config as config_lib
from posemamba_jax.config.schema import Config
from posemamba_jax.errors import UserError
from posemamba_jax.files import writing as files
from posemamba_jax.model import PoseMamba, PoseMambaConfig
from posemamba_jax.training import processes
from posemamba_jax.training.mesh import leaf_name
from posemamba_jax.training.state import TrainState

logger = logging.getLogger(__name__)

# Orbax reports there, with tracebacks, what it then raises here.
for _name in ("absl", "asyncio"):
    logging.getLogger(_name).setLevel(logging.CRITICAL)

_MODEL_FILE = "model.json"
_MODEL_FORMAT = 1


class CheckpointError(UserError, ValueError):
    """A folder is not a checkpoint, is damaged, or does not fit the model."""


class RunCheckpoints:
    """The checkpoints of one run.

    Writing goes on in the background; `wait` or leaving the context ends it. The state given to
    `save` may be donated to the next step at once.

    Args:
        run_dir: the run's folder.
        keep_last: how many of the latest stay.
        keep_steps: steps whose checkpoints stay for good.
    """

    def __init__(self, run_dir: str | Path, *, keep_last: int = 1, keep_steps: range = range(0)):
        self.run_dir = Path(run_dir).absolute()
        latest = policy.LatestN(keep_last)
        self._latest = _open_manager(
            self.run_dir / "checkpoints",
            policy.AnyPreservationPolicy([latest, policy.CustomSteps(keep_steps)]),
        )
        self._best = _open_manager(self.run_dir / "best", policy.LatestN(1))

    def __enter__(self) -> "RunCheckpoints":
        return self

    def __exit__(self, kind: type | None, *_: Any) -> None:
        if kind is not None and jax.process_count() > 1:
            return  # The others are not here to end what is being written.
        try:
            with self._writing():
                self._latest.close()
                self._best.close()
        except CheckpointError:
            if kind is None:  # Otherwise this is what is already being raised.
                raise

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        """Errors of writing, also of a save that went on in the background, in words."""
        try:
            yield
        except (OSError, ValueError, RuntimeError) as error:
            full = any(words in str(error) for words in ("No space left", "RESOURCE_EXHAUSTED"))
            reason = "the disk is full" if full else _one_line(error)
            advice = "Make room" if full else "Put that right"
            raise CheckpointError(
                f"{self.run_dir}: a checkpoint could not be written: {reason}; those before it are "
                f"intact. {advice}, then continue with --resume"
            ) from error

    def latest_step(self) -> int | None:
        """The step of the newest complete checkpoint, if there is one."""
        return self._latest.latest_step()

    def best_error(self) -> float:
        """The test error of the best checkpoint, in mm; infinite where there is none."""
        step = self._best.latest_step()
        if step is None:
            return float("inf")
        progress = self._best.restore(
            step, args=ocp.args.Composite(progress=ocp.args.JsonRestore())
        )["progress"]
        return float(progress["error_mm"])

    def save(self, state: TrainState, progress: dict[str, Any], config: Config) -> None:
        """Saves a checkpoint unless this step has one.

        Args:
            state: at the end of a step.
            progress: what else the loop needs to go on, plain JSON values.
            config: of the run.
        """
        step = int(state.step)
        with self._writing():
            if step != self._latest.latest_step():
                self._latest.save(step, args=_to_args(state, progress, config))

    def save_best(
        self, state: TrainState, progress: dict[str, Any], config: Config, error_mm: float
    ) -> None:
        """Saves the state as the best one, in place of the one before."""
        step = int(state.step)
        progress = {**progress, "error_mm": error_mm}
        with self._writing():
            for later in [s for s in self._best.all_steps() if s > step]:
                # Of a course that was abandoned when a run went back to an earlier checkpoint.
                self._best.delete(later)
            if step != self._best.latest_step():
                self._best.save(step, args=_to_args(state, progress, config))

    def wait(self) -> None:
        """Returns when everything is on disk."""
        with self._writing():
            self._latest.wait_until_finished()
            self._best.wait_until_finished()

    def restore(self, abstract: TrainState) -> tuple[TrainState, dict[str, Any]]:
        """The newest checkpoint that can be read, on the mesh of `abstract`.

        Args:
            abstract: shapes, types and shardings, as `abstract_state` gives them.

        Returns:
            The state and the progress saved with it.

        Raises:
            CheckpointError: there is none, none can be read, or it is of another model.
        """
        steps = sorted(self._latest.all_steps(), reverse=True)
        if not steps:
            raise CheckpointError(f"{self.run_dir}: no checkpoint to resume from; train without it")
        damaged: dict[Path, str] = {}
        for step in steps:
            folder = self.run_dir / "checkpoints" / str(step)
            try:
                if jax.process_count() > 1:
                    _check_readable(folder)
                stored = read_shapes(folder / "params")
                check_shapes(stored, abstract.params, str(folder))
                found = self._restore_step(step, folder, abstract)
            except CheckpointError:
                raise
            except Exception as error:  # Orbax and its file formats raise whatever they meet.
                damaged[folder] = f"{type(error).__name__}: {_one_line(error)}"
                continue
            self._set_aside(damaged)
            return found
        reasons = "".join(f"\n  {folder}: {reason}" for folder, reason in damaged.items())
        raise CheckpointError(f"{self.run_dir}: no checkpoint can be read{reasons}")

    def _set_aside(self, damaged: dict[Path, str]) -> None:
        """Renames checkpoints, so that their steps can be saved again."""
        if not damaged:
            return
        with processes.all_or_none("setting damaged checkpoints aside"):
            for folder, reason in damaged.items() if processes.is_first() else ():
                aside = _unused(folder.with_name(f"{folder.name}.damaged"))
                folder.rename(aside)
                logger.warning(
                    "%s is damaged (%s); renamed to %s, going on from the one before it",
                    folder, reason, aside.name,
                )  # fmt: skip
        self._latest.reload()

    def _restore_step(
        self, step: int, folder: Path, abstract: TrainState
    ) -> tuple[TrainState, dict[str, Any]]:
        has_ema = (folder / "ema").is_dir()
        wants_ema = abstract.ema is not None
        items = {
            "params": ocp.args.StandardRestore(abstract.params),
            "rest": ocp.args.StandardRestore(_rest(abstract)),
            "progress": ocp.args.JsonRestore(),
        }
        if wants_ema and has_ema:
            items["ema"] = ocp.args.StandardRestore(abstract.ema)
        found = self._latest.restore(step, args=ocp.args.Composite(**items))
        ema = None
        if wants_ema:
            # An average that starts now starts from what there is.
            ema = found["ema"] if has_ema else jax.tree.map(lambda p: p.copy(), found["params"])
        return TrainState(params=found["params"], ema=ema, **found["rest"]), found["progress"]


def save_model(
    directory: str | Path,
    model_config: PoseMambaConfig,
    params: Any,
    metadata: dict[str, Any] | None = None,
) -> Path:
    """Writes a model alone: its configuration and parameters.

    Args:
        directory: a new or empty folder, or one that holds a model, which is replaced.
        model_config: of the parameters.
        params: the tree under "params" of the model's variables, or the variables themselves.
        metadata: plain values to keep beside it, such as where the weights came from.

    Returns:
        The folder.

    Raises:
        CheckpointError: the folder holds something else, or the parameters are not the model's.
    """
    directory = Path(directory).absolute()
    params = params.get("params", params)
    check_shapes(_shapes(params), _model_shapes(model_config), "the parameters to save")
    if directory.is_dir() and any(directory.iterdir()) and not (directory / _MODEL_FILE).is_file():
        raise CheckpointError(f"{directory}: not empty and not a model; give a new folder")
    directory.mkdir(parents=True, exist_ok=True)
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(directory / "params", jax.tree.map(np.asarray, params), force=True)
        checkpointer.wait_until_finished()
    about = {
        "format": _MODEL_FORMAT,
        "model": config_lib.to_dict(model_config),
        "metadata": metadata or {},
    }
    files.write_text(directory / _MODEL_FILE, json.dumps(about, indent=2) + "\n")
    return directory


def load_model(
    directory: str | Path, which: Literal["best", "latest"] = "best"
) -> tuple[PoseMambaConfig, dict[str, Any]]:
    """Reads the model of a run, of one of its checkpoints, or one that `save_model` wrote.

    Args:
        directory: a run's folder, a checkpoint in it, or a model's folder.
        which: of a run, the checkpoint with the lowest test error (the latest where none has been
            evaluated), or the latest. The running average is read where one was kept.

    Returns:
        The model's configuration and its variables, {"params": ...} as NumPy arrays.

    Raises:
        CheckpointError: there is no checkpoint, it is damaged, or it does not fit its description.
    """
    folder = find_checkpoint(directory, which)
    try:
        model_config = PoseMambaConfig(**_read_model_config(folder))
    except (TypeError, ValueError) as error:
        raise CheckpointError(f"{folder}: its configuration cannot be used: {error}") from None
    item = folder / ("ema" if (folder / "ema").is_dir() else "params")
    try:
        params = _read_arrays(item)
    except Exception as error:  # Orbax and its file formats raise whatever they meet.
        raise CheckpointError(f"{item}: damaged: {_one_line(error)}") from None
    check_shapes(_shapes(params), _model_shapes(model_config), str(folder))
    return model_config, {"params": params}


def load_arrays(
    directory: str | Path, which: Literal["best", "latest"] = "latest"
) -> dict[str, np.ndarray]:
    """Every array of a run's checkpoint: parameters, their average, and the optimiser's state.

    Args:
        directory: a run's folder or a checkpoint in it.
        which: of a run.

    Returns:
        Path, such as `params/head/kernel` -> array.

    Raises:
        CheckpointError: there is no checkpoint, or it is damaged.
    """
    folder = find_checkpoint(directory, which)
    found = {}
    for item in [name for name in ("params", "ema", "rest") if (folder / name).is_dir()]:
        try:
            tree = _read_arrays(folder / item)
        except Exception as error:  # Orbax and its file formats raise whatever they meet.
            raise CheckpointError(f"{folder / item}: damaged: {_one_line(error)}") from None
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
            found[f"{item}/{leaf_name(path)}"] = np.asarray(leaf)
    return found


def load_run_config(
    directory: str | Path, which: Literal["best", "latest"] = "best"
) -> Config | None:
    """The configuration of the run that a checkpoint belongs to; None for a model alone.

    Raises:
        CheckpointError: there is no checkpoint.
        ConfigError: it cannot be read with this version.
    """
    folder = find_checkpoint(directory, which)
    if (folder / _MODEL_FILE).is_file():
        return None
    return config_lib.from_dict(_read_json(folder / "config"), f"{folder}/config: ")


def find_checkpoint(directory: str | Path, which: Literal["best", "latest"] = "best") -> Path:
    """The folder that holds the arrays: `directory` itself or a checkpoint of that run.

    Raises:
        CheckpointError: there is none.
    """
    directory = Path(directory).expanduser().absolute()
    if directory.is_file():
        raise CheckpointError(
            f"{directory}: a file; turn a checkpoint of the authors into a folder first: "
            f"python -m posemamba_jax.convert {directory.name} FOLDER"
        )
    if not directory.is_dir():
        raise CheckpointError(f"{directory}: no such folder; give a run or a checkpoint")
    if (directory / _MODEL_FILE).is_file() or _is_step(directory):
        return directory
    folders = ["best", "checkpoints"] if which == "best" else ["checkpoints"]
    for parent in [directory / name for name in folders] + [directory]:
        steps = [p for p in parent.glob("*") if p.name.isdigit() and _is_step(p)]
        if steps:
            return max(steps, key=lambda p: int(p.name))
    raise CheckpointError(f"{directory}: holds no checkpoint (yet)")


def read_shapes(item: Path) -> dict[str, tuple[int, ...]]:
    """Path of every stored array -> shape, without reading the arrays."""
    with ocp.StandardCheckpointer() as checkpointer:
        metadata = checkpointer.metadata(item).item_metadata
    if metadata is None:
        raise ValueError("the list of its arrays cannot be read")
    return _shapes(metadata.tree)


def check_shapes(stored: dict[str, tuple[int, ...]], expected: Any, where: str) -> None:
    """Compares stored parameters with the model's.

    Args:
        stored: path -> shape.
        expected: the model's tree.
        where: what was read, for the error.

    Raises:
        CheckpointError: with a table of what is missing, unexpected or of another shape.
    """
    wanted = _shapes(expected)
    rows = [
        (name, stored.get(name), wanted.get(name))
        for name in sorted({*stored, *wanted})
        if stored.get(name) != wanted.get(name)
    ]
    if not rows:
        return
    width = max(len(name) for name, _, _ in rows)
    lines = [f"  {'parameter':{width}}  {'in the checkpoint':22}  in the model"]
    lines += [f"  {name:{width}}  {_text(a):22}  {_text(b)}" for name, a, b in rows[:20]]
    if len(rows) > 20:
        lines.append(f"  and {len(rows) - 20} more")
    raise CheckpointError(f"{where}: not this model's parameters\n" + "\n".join(lines))


# Parts


def _open_manager(folder: Path, preservation: Any) -> ocp.CheckpointManager:
    options = ocp.CheckpointManagerOptions(
        preservation_policy=preservation, cleanup_tmp_directories=True
    )
    return ocp.CheckpointManager(folder, options=options)


def _rest(state: TrainState) -> dict[str, Any]:
    """All of the state but the parameters and their average."""
    names = [field.name for field in dataclasses.fields(state)]
    return {name: getattr(state, name) for name in names if name not in ("params", "ema")}


def _to_args(state: TrainState, progress: dict[str, Any], config: Config) -> Any:
    items = {
        "params": ocp.args.StandardSave(state.params),
        "rest": ocp.args.StandardSave(_rest(state)),
        "progress": ocp.args.JsonSave(progress),
        "config": ocp.args.JsonSave(config_lib.to_dict(config)),
    }
    if state.ema is not None:
        items["ema"] = ocp.args.StandardSave(state.ema)
    return ocp.args.Composite(**items)


def _is_step(folder: Path) -> bool:
    return (folder / "params").is_dir() and (folder / "config").is_dir()


def _read_model_config(folder: Path) -> dict[str, Any]:
    file = folder / _MODEL_FILE
    if not file.is_file():
        return _read_json(folder / "config").get("model", {})
    try:
        about = json.loads(file.read_text(encoding="utf-8"))
        if about["format"] != _MODEL_FORMAT:
            raise CheckpointError(f"{file}: format {about['format']}, expected {_MODEL_FORMAT}")
        return about["model"]
    except (ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{file}: not a model's description: {error!r}") from None


def _read_json(item: Path) -> dict[str, Any]:
    try:
        with ocp.Checkpointer(ocp.JsonCheckpointHandler()) as checkpointer:
            return checkpointer.restore(item)
    except Exception as error:  # Orbax raises whatever it meets.
        raise CheckpointError(f"{item}: damaged: {_one_line(error)}") from None


def _check_readable(folder: Path) -> None:
    """Reads all of a checkpoint in the first of several processes.

    Damage may show to one process only, and the others would wait for it in the middle of reading
    together.

    Raises:
        Exception: it is damaged; in all processes.
    """
    with processes.all_or_none(f"reading {folder}"):
        if processes.is_first():
            alone = ocp.options.MultiprocessingOptions(
                primary_host=0, active_processes={0}, barrier_sync_key_prefix="alone"
            )
            for item in ("params", "rest", "ema"):
                if item != "ema" or (folder / item).is_dir():
                    _read_arrays(folder / item, multiprocessing_options=alone)
            json.loads((folder / "progress" / "metadata").read_text(encoding="utf-8"))


def _read_arrays(item: Path, **options: Any) -> Any:
    """Arrays as NumPy's, whatever devices wrote them; options as Orbax's `Checkpointer` has."""
    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler(**options), **options) as checkpointer:
        tree = checkpointer.metadata(item).item_metadata.tree
        as_numpy = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), tree)
        return checkpointer.restore(item, restore_args=as_numpy)


def _model_shapes(model_config: PoseMambaConfig) -> Any:
    model = PoseMamba(model_config)
    clip = jax.ShapeDtypeStruct(
        (1, model_config.num_frames, model_config.num_joints, 2), np.float32
    )
    return jax.eval_shape(model.init, jax.random.key(0), clip)["params"]


def _shapes(tree: Any) -> dict[str, tuple[int, ...]]:
    leaves = jax.tree_util.tree_leaves_with_path(tree, is_leaf=lambda x: hasattr(x, "shape"))
    return {leaf_name(path): tuple(leaf.shape) for path, leaf in leaves}


def _unused(path: Path) -> Path:
    """The path, or with a number if there is something already."""
    names = itertools.chain(
        [path], (path.with_name(f"{path.name}.{n}") for n in itertools.count(2))
    )
    return next(name for name in names if not name.exists())


def _text(shape: tuple[int, ...] | None) -> str:
    return "missing" if shape is None else str(shape)


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:300]
