"""A model on disk: its configuration, parameters and skeleton.

A model alone is a folder with `model.json` and `params`, or one `.npz` file with the same in it. A
checkpoint of a run (see `posemamba_jax.training.checkpoint`) holds the same among other things, and
is read here too. Arrays of folders are written with Orbax, under another name until they are
complete. Where a folder is named, `pretrained:NAME` names a model that is installed with the
package (`posemamba_jax.pretrained`).
"""

import contextlib
import dataclasses
import io
import json
import os
import re
import shutil
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal

import jax
import numpy as np
import orbax.checkpoint as ocp
from flax import traverse_util

from posemamba_jax.errors import DataError, UserError, describe_error
from posemamba_jax.files import npy, writing
from posemamba_jax.files.reading import user_path
from posemamba_jax.files.skeleton_file import skeleton_from_dict, skeleton_to_dict
from posemamba_jax.model.config import PoseMambaConfig
from posemamba_jax.model.forward import abstract_params
from posemamba_jax.model.mesh import leaf_name
from posemamba_jax.pretrained import index
from posemamba_jax.skeleton import H36M17, Skeleton

MODEL_FILE = "model.json"
_MODEL_FORMAT = 1
_PARAMS = "params"
# Parameters, whole or half-written, that no description names any more or yet.
_OF_A_MODEL = re.compile(r"params(\.[0-9]+)?(\.orbax-checkpoint-tmp.*)?")


class CheckpointError(UserError, ValueError):
    """A folder is not a checkpoint, is damaged, or does not fit the model."""


def save_model(
    directory: str | Path,
    model_config: PoseMambaConfig,
    params: Any,
    metadata: dict[str, Any] | None = None,
    *,
    skeleton: Skeleton | None = None,
) -> Path:
    """Writes a model alone: its configuration and parameters.

    Args:
      directory: a new or empty folder, or one that holds a model, which is replaced in one step:
          whenever the program ends, the old model is there whole, or the new one.
      model_config: of the parameters.
      params: the tree under "params" of the model's variables, or the variables themselves.
      metadata: plain values to keep beside it, such as where the weights came from.
      skeleton: what the joints of its poses are; None for Human3.6M's 17, or where it is not
          known.

    Returns:
      The folder.

    Raises:
      CheckpointError: the folder holds something else, or the parameters are not the model's.
    """
    directory = Path(directory).absolute()
    params = params.get("params", params)
    check_shapes(_shapes(params), abstract_params(model_config), "the parameters to save")
    there = [path.name for path in directory.iterdir()] if directory.is_dir() else []
    # Writing a model ends with its description; what a killed program left is no obstacle.
    if MODEL_FILE not in there and not all(map(_OF_A_MODEL.fullmatch, there)):
        raise CheckpointError(f"{directory}: not empty and not a model; give a new folder")
    directory.mkdir(parents=True, exist_ok=True)
    item = writing.unused(directory / _PARAMS)
    told = failed_writes_told(
        f"{directory}: the model", kept="what was there is intact", then="try again"
    )
    with told, ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(item, jax.tree.map(np.asarray, params))
        checkpointer.wait_until_finished()
    about = _describe(item.name, model_config, metadata, skeleton)
    # From here on the description names the new parameters, and no longer the old ones.
    writing.write_text(directory / MODEL_FILE, about)
    for other in directory.iterdir():
        if other.name != item.name and _OF_A_MODEL.fullmatch(other.name):
            shutil.rmtree(other, ignore_errors=True)
    return directory


def model_file(
    model_config: PoseMambaConfig,
    params: Any,
    metadata: dict[str, Any] | None = None,
    *,
    skeleton: Skeleton | None = None,
) -> bytes:
    """Makes the content of a model's `.npz` file, the same bytes for the same model.

    The implementation of the scan is left to the machine that the model is loaded on.

    Args:
      model_config, params, metadata, skeleton: as for `save_model`.

    Raises:
      CheckpointError: the parameters are not the model's.
    """
    params = params.get("params", params)
    check_shapes(_shapes(params), abstract_params(model_config), "the parameters to save")
    model_config = dataclasses.replace(model_config, implementation=None)
    about = _describe(_PARAMS, model_config, metadata, skeleton)
    arrays = {MODEL_FILE: np.frombuffer(about.encode("utf-8"), np.uint8)}
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        arrays[f"{_PARAMS}/{leaf_name(path)}"] = np.asarray(leaf, np.float32, order="C")
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        for name in sorted(arrays):
            member = io.BytesIO()
            np.lib.format.write_array(member, arrays[name], allow_pickle=False)
            # Without a name's time of writing, which numpy.savez puts in.
            archive.writestr(zipfile.ZipInfo(f"{name}.npy"), member.getvalue())
    return content.getvalue()


def load_model(
    directory: str | Path, which: Literal["best", "latest"] = "best"
) -> tuple[PoseMambaConfig, dict[str, Any]]:
    """Reads the model of a run, of one of its checkpoints, or one that `save_model` wrote.

    Args:
      directory: a run's folder, a checkpoint in it, a model's folder or file, or
          `pretrained:NAME`.
      which: of a run, the checkpoint with the lowest test error (the latest where none has been
          evaluated), or the latest. The running average is read where one was kept.

    Returns:
      The model's configuration and its variables, {"params": ...} as NumPy arrays.

    Raises:
      CheckpointError: there is no checkpoint, it is damaged, or it does not fit its description.
    """
    folder = find_checkpoint(directory, which)
    about, params = _read_file(folder) if folder.is_file() else (None, None)
    try:
        fields = _read_model_config(folder) if about is None else about["model"]
        model_config = PoseMambaConfig(**fields)
    except (TypeError, ValueError) as error:
        raise CheckpointError(f"{folder}: its configuration cannot be used: {error}") from None
    if params is None:
        item = _params_item(folder)
        try:
            params = read_arrays(item)
        except Exception as error:  # Orbax and its file formats raise whatever they meet.
            raise CheckpointError(f"{item}: damaged: {one_line(error)}") from None
    check_shapes(_shapes(params), abstract_params(model_config), str(folder))
    return model_config, {"params": params}


def load_skeleton(
    directory: str | Path, which: Literal["best", "latest"] = "best"
) -> Skeleton | None:
    """Reads what the joints of a checkpoint's poses are.

    Checkpoints that do not say, as older ones, are of Human3.6M's skeleton where they have 17
    joints; of others it is not known.

    Args:
      directory, which: as for `load_model`.

    Returns:
      The skeleton, or None where it is not known.

    Raises:
      CheckpointError: there is no checkpoint, or what it says cannot be read.
    """
    folder = find_checkpoint(directory, which)
    about = read_description(folder)
    tree = None
    if about is not None:
        tree = about.get("skeleton")
    elif (folder / "skeleton").is_dir():
        tree = read_json(folder / "skeleton")
    if tree is not None:
        try:
            return skeleton_from_dict(tree, f"{folder}: skeleton")
        except DataError as error:
            raise CheckpointError(str(error)) from None
    joints = _read_model_config(folder).get("num_joints", H36M17.num_joints)
    return H36M17 if joints == H36M17.num_joints else None


def load_arrays(
    directory: str | Path, which: Literal["best", "latest"] = "latest"
) -> dict[str, np.ndarray]:
    """Loads every array of a run's checkpoint: parameters, their average, and the optimiser's
    state.

    Args:
      directory: a run's folder or a checkpoint in it.
      which: of a run.

    Returns:
      Path, such as `params/head/kernel` -> array.

    Raises:
      CheckpointError: there is no checkpoint, or it is damaged.
    """
    folder = find_checkpoint(directory, which)
    if folder.is_file():
        found = traverse_util.flatten_dict(_read_file(folder)[1], sep="/")
        return {f"{_PARAMS}/{name}": leaf for name, leaf in found.items()}
    found = {}
    for item in [name for name in ("params", "ema", "rest") if (folder / name).is_dir()]:
        try:
            tree = read_arrays(folder / item)
        except Exception as error:  # Orbax and its file formats raise whatever they meet.
            raise CheckpointError(f"{folder / item}: damaged: {one_line(error)}") from None
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
            found[f"{item}/{leaf_name(path)}"] = np.asarray(leaf)
    return found


def find_checkpoint(directory: str | Path, which: Literal["best", "latest"] = "best") -> Path:
    """Finds what holds the arrays: `directory` itself, a checkpoint of that run, or a model's file.

    Args:
      directory, which: as for `load_model`.

    Raises:
      CheckpointError: there is none.
      PretrainedError: no model of that name is installed, or its file is damaged.
    """
    if os.fspath(directory).startswith(index.PREFIX):
        return index.find(os.fspath(directory))
    directory = user_path(directory).absolute()
    if directory.is_file() and directory.suffix == ".npz":
        return directory
    if directory.is_file():
        raise CheckpointError(
            f"{directory}: a file; turn a checkpoint of the authors into a folder first: "
            f"python -m posemamba_jax.convert {directory.name} FOLDER"
        )
    if not directory.is_dir():
        raise CheckpointError(f"{directory}: no such folder; give a run or a checkpoint")
    if (directory / MODEL_FILE).is_file() or _is_step(directory):
        return directory
    folders = ["best", "checkpoints"] if which == "best" else ["checkpoints"]
    for parent in [directory / name for name in folders] + [directory]:
        steps = [p for p in parent.glob("*") if re.fullmatch("[0-9]+", p.name) and _is_step(p)]
        if steps:
            return max(steps, key=lambda p: int(p.name))
    raise CheckpointError(f"{directory}: holds no checkpoint (yet)")


def read_shapes(item: Path) -> dict[str, tuple[int, ...]]:
    """Reads the shape of every stored array, by its path, without reading the arrays."""
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


def _is_step(folder: Path) -> bool:
    return (folder / "params").is_dir() and (folder / "config").is_dir()


def _params_item(folder: Path) -> Path:
    """Finds the folder of the parameters to use: the running average where there is one."""
    file = folder / MODEL_FILE
    if file.is_file():
        name = _parse_description(file.read_bytes, file).get("params", _PARAMS)
        if not isinstance(name, str) or "/" in name or not name.startswith(_PARAMS):
            raise CheckpointError(f"{file}: params is {name!r}, expected the name of a folder")
        return folder / name
    return folder / ("ema" if (folder / "ema").is_dir() else _PARAMS)


def _read_model_config(folder: Path) -> dict[str, Any]:
    about = read_description(folder)
    return read_json(folder / "config").get("model", {}) if about is None else about["model"]


def _describe(
    params: str,
    model_config: PoseMambaConfig,
    metadata: dict[str, Any] | None,
    skeleton: Skeleton | None,
) -> str:
    """Writes the description of a model alone."""
    about = {
        "format": _MODEL_FORMAT,
        "params": params,
        "model": dataclasses.asdict(model_config),
        "metadata": metadata or {},
    }
    if skeleton is not None:
        about["skeleton"] = skeleton_to_dict(skeleton)
    return json.dumps(about, indent=2) + "\n"


def read_description(folder: Path) -> dict[str, Any] | None:
    """Reads what a model alone says of itself; None for a checkpoint of a run.

    Args:
      folder: as `find_checkpoint` gives it.

    Returns:
      "model" (the configuration), "metadata" and, where it is known, "skeleton".

    Raises:
      CheckpointError: it is damaged.
    """
    if folder.is_file():
        return _read_file(folder)[0]
    file = folder / MODEL_FILE
    return _parse_description(file.read_bytes, file) if file.is_file() else None


def _read_file(file: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Reads the description and the parameters of a model's `.npz` file."""
    try:
        arrays = npy.read_arrays(file)
    except UserError as error:
        raise CheckpointError(str(error)) from None
    about = arrays.get(MODEL_FILE)
    wrong = [name for name, array in arrays.items() if not isinstance(array, np.ndarray)]
    if about is None or wrong:
        raise CheckpointError(f"{file}: not the file of a model, which holds {MODEL_FILE}")
    params = {
        # A copy, so that it can be written to as those of a folder.
        name.removeprefix(f"{_PARAMS}/"): np.array(array)
        for name, array in arrays.items()
        if name.startswith(f"{_PARAMS}/")
    }
    try:
        tree = traverse_util.unflatten_dict(params, sep="/")
    except TypeError:  # One name is the beginning of another.
        raise CheckpointError(f"{file}: damaged: its arrays make no tree") from None
    return _parse_description(about.tobytes, file), tree


def _parse_description(read: Callable[[], bytes], file: Path) -> dict[str, Any]:
    """Parses the description of a model alone, in the file of that name or in the model's."""
    try:
        about = json.loads(read().decode("utf-8"))
        if about["format"] != _MODEL_FORMAT:
            raise CheckpointError(f"{file}: format {about['format']}, expected {_MODEL_FORMAT}")
        if not isinstance(about["model"], dict):
            raise CheckpointError(f"{file}: model is {about['model']!r}, expected a section")
        return about
    except (OSError, ValueError, KeyError, TypeError) as error:
        if isinstance(error, CheckpointError):
            raise
        raise CheckpointError(f"{file}: not a model's description: {error!r}") from None


def read_json(item: Path) -> dict[str, Any]:
    """Reads a JSON item of a checkpoint.

    Raises:
      CheckpointError: it is damaged.
    """
    # Not through Orbax, which waits for all processes to read the same.
    try:
        found = json.loads((item / "metadata").read_text(encoding="utf-8"))
        if not isinstance(found, dict):
            raise ValueError(f"expected an object, found {type(found).__name__}")
        return found
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{item}: damaged: {one_line(error)}") from None


def read_arrays(item: Path, **options: Any) -> Any:
    """Reads an item's arrays as NumPy's, whatever devices wrote them.

    Options are those of Orbax's `Checkpointer`.
    """
    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler(**options), **options) as checkpointer:
        tree = checkpointer.metadata(item).item_metadata.tree
        as_numpy = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), tree)
        return checkpointer.restore(item, restore_args=as_numpy)


def _shapes(tree: Any) -> dict[str, tuple[int, ...]]:
    leaves = jax.tree_util.tree_leaves_with_path(tree, is_leaf=lambda x: hasattr(x, "shape"))
    return {leaf_name(path): tuple(leaf.shape) for path, leaf in leaves}


def _text(shape: tuple[int, ...] | None) -> str:
    return "missing" if shape is None else str(shape)


@contextlib.contextmanager
def failed_writes_told(what: str, *, kept: str, then: str) -> Iterator[None]:
    """Turns what Orbax raises when it cannot write into one line.

    Args:
      what: was to be written, and where.
      kept: says what is still there.
      then: says what to do once the reason is mended.

    Raises:
      CheckpointError: in place of what the block raises.
    """
    try:
        yield
    except (OSError, ValueError, RuntimeError) as error:
        full = any(words in str(error) for words in ("No space left", "RESOURCE_EXHAUSTED"))
        reason = "the disk is full" if full else describe_error(error)[:300]
        advice = "Make room" if full else "Put that right"
        raise CheckpointError(
            f"{what} could not be written: {reason}; {kept}. {advice}, then {then}"
        ) from error


def one_line(error: Exception) -> str:
    """Puts an error's text into one line, cut to 300 characters."""
    return " ".join(str(error).split())[:300]
