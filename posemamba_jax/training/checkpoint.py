"""Checkpoints of a run, from which it continues exactly.

A run keeps full checkpoints in `RUN/checkpoints/STEP` (the latest, and every n epochs) and
`RUN/best/STEP` (lowest test error). Each holds the parameters, their running average if there is
one, the optimiser's state, the step, the random key, the position in the data, the configuration
and the skeleton. Arrays are written with Orbax, under another name until they are complete, so that
what has a checkpoint's name is whole. `posemamba_jax.model.checkpoint` reads the model of one.
"""

import contextlib
import dataclasses
import logging
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp
from orbax.checkpoint.checkpoint_managers import preservation_policy as policy

from posemamba_jax import config as config_lib
from posemamba_jax.config.schema import Config
from posemamba_jax.evaluation.checkpoint import load_run_config
from posemamba_jax.files import writing
from posemamba_jax.files.skeleton_file import skeleton_to_dict
from posemamba_jax.model.checkpoint import (
    CheckpointError,
    check_shapes,
    failed_writes_told,
    find_checkpoint,
    load_arrays,
    load_model,
    load_skeleton,
    one_line,
    read_arrays,
    read_json,
    read_shapes,
    save_model,
)
from posemamba_jax.skeleton import Skeleton
from posemamba_jax.training import processes
from posemamba_jax.training.state import TrainState

# What a script needs of a run's checkpoints, from one place.
__all__ = [
    "CheckpointError",
    "RunCheckpoints",
    "find_checkpoint",
    "load_arrays",
    "load_model",
    "load_run_config",
    "load_skeleton",
    "save_model",
]

logger = logging.getLogger(__name__)


class RunCheckpoints:
    """The checkpoints of one run.

    Writing goes on in the background; `wait` or leaving the context ends it. The state given to
    `save` may be donated to the next step at once.

    Args:
      run_dir: the run's folder.
      keep_last: how many of the latest stay.
      keep_steps: steps whose checkpoints stay for good.
      skeleton: of the poses trained on; checkpoints keep it and those of another one are refused.
          None keeps and compares nothing.
    """

    def __init__(
        self,
        run_dir: str | Path,
        *,
        keep_last: int = 1,
        keep_steps: range = range(0),
        skeleton: Skeleton | None = None,
    ):
        self.run_dir = Path(run_dir).absolute()
        self._skeleton = skeleton
        self._proven = _NewestProven()
        policies = [policy.LatestN(keep_last), policy.CustomSteps(keep_steps), self._proven]
        self._latest = _open_manager(
            self.run_dir / "checkpoints", policy.AnyPreservationPolicy(policies)
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

    def _writing(self) -> contextlib.AbstractContextManager[None]:
        """Errors of writing, also of a save that went on in the background, in words."""
        return failed_writes_told(
            f"{self.run_dir}: a checkpoint",
            kept="those before it are intact",
            then="continue with --resume",
        )

    def latest_step(self) -> int | None:
        """Returns the step of the newest complete checkpoint, or None if there is none."""
        return self._latest.latest_step()

    @property
    def proven_step(self) -> int:
        """A step whose state has shown to be good, so that its checkpoint is not pruned.

        A state is good if the loss of the step after it, or its test error, is finite.
        """
        return self._proven.step

    @proven_step.setter
    def proven_step(self, step: int) -> None:
        self._proven.step = step

    def claim_best(self, step: int, identity: dict[str, Any]) -> float:
        """Returns the test error of the best checkpoint that belongs to the run, in mm.

        One that does not belong is renamed, with a warning: of a later step than the run is at, of
        another course, on another test set, or damaged.

        Args:
          step: where the run is.
          identity: what the progress saved with the best has to hold.

        Returns:
          The error; infinite where there is none.
        """
        error_mm, foreign = float("inf"), {}
        for found in self._best.all_steps():
            folder = self.run_dir / "best" / str(found)
            try:
                progress = read_json(folder / "progress")
                if not _is_whole(folder):
                    raise ValueError("files are missing")
                # Earlier versions wrote no test set; of their own course it is taken as the same.
                stored = {"test_set": identity.get("test_set"), **progress}
                other = [key for key in identity if stored.get(key) != identity[key]]
                if found > step:
                    foreign[folder] = f"is of step {found}, and the run goes on from step {step}"
                elif other:
                    foreign[folder] = f"is of another {' and '.join(other).replace('_', ' ')}"
                else:
                    error_mm = float(progress["error_mm"])
            except (ValueError, KeyError, TypeError, OSError) as error:
                foreign[folder] = f"is damaged ({one_line(error)})"
        self._rename(self._best, foreign, "aside", "the best so far starts anew")
        return error_mm

    def set_aside_unproven(self) -> int | None:
        """Renames the checkpoints after `proven_step`, with a warning.

        Returns:
          The step of the newest that is left, if there is one.
        """
        self.wait()
        after = {
            self.run_dir / "checkpoints" / str(step): "is of a state that diverged"
            for step in self._latest.all_steps()
            if step > self.proven_step
        }
        self._rename(self._latest, after, "diverged", "the one before it is the last good one")
        return self.latest_step()

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
                self._latest.save(step, args=_to_args(state, progress, config, self._skeleton))

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
                self._best.save(step, args=_to_args(state, progress, config, self._skeleton))

    def wait(self) -> None:
        """Returns when everything is on disk."""
        with self._writing():
            self._latest.wait_until_finished()
            self._best.wait_until_finished()

    def restore(self, abstract: TrainState) -> tuple[TrainState, dict[str, Any]]:
        """Restores the newest checkpoint that can be read, on the mesh of `abstract`.

        Args:
          abstract: shapes, types and shardings, as `abstract_state` gives them.

        Returns:
          The state and the progress saved with it.

        Raises:
          CheckpointError: there is none, none can be read, or it is of another model or skeleton.
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
                self._check_skeleton(folder)
                found = self._restore_step(step, folder, abstract)
            except CheckpointError:
                raise
            except Exception as error:  # Orbax and its file formats raise whatever they meet.
                damaged[folder] = f"{type(error).__name__}: {one_line(error)}"
                continue
            reasons = {folder: f"is damaged ({reason})" for folder, reason in damaged.items()}
            self._rename(self._latest, reasons, "damaged", "going on from the one before it")
            return found
        reasons = "".join(f"\n  {folder}: {reason}" for folder, reason in damaged.items())
        raise CheckpointError(f"{self.run_dir}: no checkpoint can be read{reasons}")

    def _check_skeleton(self, folder: Path) -> None:
        stored = load_skeleton(folder) if self._skeleton is not None else None
        difference = stored and stored.first_difference(self._skeleton)
        if difference:
            raise CheckpointError(
                f"{folder}: trained on the skeleton {stored.name}, the data has "
                f"{self._skeleton.name}: {difference}"
            )

    def _rename(
        self, manager: ocp.CheckpointManager, reasons: dict[Path, str], word: str, outcome: str
    ) -> None:
        """Renames checkpoints, so that their steps can be saved again, and says why."""
        if not reasons:
            return
        with processes.all_or_none("setting checkpoints aside"):
            for folder, reason in reasons.items() if processes.is_first() else ():
                aside = writing.unused(folder.with_name(f"{folder.name}.{word}"))
                folder.rename(aside)
                logger.warning("%s %s; renamed to %s, %s", folder, reason, aside.name, outcome)
        manager.reload()

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


@dataclasses.dataclass
class _NewestProven(policy.PreservationPolicy):
    """Preserves the newest checkpoint up to a step that has shown to be good."""

    step: int = 0

    def should_preserve(self, checkpoints, *, context):
        del context
        proven = max((c.step for c in checkpoints if c.step <= self.step), default=None)
        return [c.step == proven for c in checkpoints]


def _is_whole(folder: Path) -> bool:
    return all((folder / item).is_dir() for item in ("params", "rest", "config"))


def _open_manager(folder: Path, preservation: Any) -> ocp.CheckpointManager:
    options = ocp.CheckpointManagerOptions(
        preservation_policy=preservation, cleanup_tmp_directories=True
    )
    return ocp.CheckpointManager(folder, options=options)


def _rest(state: TrainState) -> dict[str, Any]:
    """Takes all of the state but the parameters and their average."""
    names = [field.name for field in dataclasses.fields(state)]
    return {name: getattr(state, name) for name in names if name not in ("params", "ema")}


def _to_args(
    state: TrainState, progress: dict[str, Any], config: Config, skeleton: Skeleton | None
) -> Any:
    items = {
        "params": ocp.args.StandardSave(state.params),
        "rest": ocp.args.StandardSave(_rest(state)),
        "progress": ocp.args.JsonSave(progress),
        "config": ocp.args.JsonSave(config_lib.to_dict(config)),
    }
    if skeleton is not None:
        items["skeleton"] = ocp.args.JsonSave(skeleton_to_dict(skeleton))
    if state.ema is not None:
        items["ema"] = ocp.args.StandardSave(state.ema)
    return ocp.args.Composite(**items)


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
                    read_arrays(folder / item, multiprocessing_options=alone)
            read_json(folder / "progress")
