"""Converts the Human3.6M file, once, into arrays that are opened without being read.

The cache is a folder: one .npy file per split and array, normalised as the contract of clip sources
wants them, and cache.json with the recordings. Its name holds a digest of the source file's path,
size and modification time, so a changed file gets a new cache. It is written under another name and
renamed when complete; a conversion that was cut short leaves nothing that looks like a cache.
"""

import dataclasses
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.progress import Progress

from posemamba_jax.data.clips import DataError, Recording, check_finite, runs
from posemamba_jax.files import restricted_pickle
from posemamba_jax.files.reading import user_path
from posemamba_jax.files.writing import new_folder, remove_abandoned

# Width and height in pixels.
CAMERA_RESOLUTIONS = {
    "54138969": (1000, 1002),
    "60457274": (1000, 1002),
    "55011271": (1000, 1000),
    "58860488": (1000, 1000),
}
SPLITS = ("train", "test")
NUM_JOINTS = 17

_VERSION = 1
_ROWS_PER_PART = 16384


@dataclasses.dataclass(frozen=True)
class Split:
    """One split of the file, memory-mapped; arrays as `ArrayClips` takes them."""

    recordings: list[Recording]
    poses_2d: np.ndarray
    poses_3d: np.ndarray
    poses_3d_mm: np.ndarray | None = None
    mm_per_unit: np.ndarray | None = None


def open_split(path: str | os.PathLike, split: str, cache_dir: str | None = None) -> Split:
    """Opens one split of the Human3.6M file, converting the file first where that is needed.

    Args:
      path: h36m_sh_conf_cam_source_final.pkl, or a file in its format.
      split: "train" or "test".
      cache_dir: where caches are kept; beside the file if None.

    Raises:
      DataError: the file cannot be used, or the cache cannot be written.
    """
    folder = cache_folder(path, cache_dir)
    if not (folder / "cache.json").is_file():
        _convert(user_path(path), folder)
    try:
        cache = json.loads((folder / "cache.json").read_text())
        arrays = {
            name: np.asarray(np.load(folder / f"{split}_{name}.npy", mmap_mode="r"))
            for name in cache["arrays"][split]
        }
        recordings = [Recording(*recording) for recording in cache["recordings"][split]]
    # A damaged array's header can raise nearly anything.
    except Exception as error:
        reason = " ".join(str(error).split())
        raise DataError(
            f"the cache {folder} is damaged ({reason}); delete it and run again"
        ) from error
    return Split(recordings, **arrays)


def cache_folder(path: str | os.PathLike, cache_dir: str | None = None) -> Path:
    """Returns the folder of this file's cache, which need not be there."""
    path = user_path(path)
    try:
        stat = path.stat()
    except OSError as error:
        raise DataError(
            f"cannot open the Human3.6M file {path}: {error.strerror}; set data.h36m.path to "
            "where h36m_sh_conf_cam_source_final.pkl is (docs/data.md says where to get it)"
        ) from error
    identity = f"{_VERSION}:{path.resolve()}:{stat.st_size}:{stat.st_mtime_ns}"
    digest = hashlib.sha256(identity.encode()).hexdigest()[:16]
    return user_path(cache_dir or path.parent) / f"{path.stem}-cache-{digest}"


def _convert(path: Path, folder: Path) -> None:
    # Progress goes to stderr, so that a command's own output can be piped.
    console = Console(stderr=True)
    with Progress(console=console, transient=console.is_terminal) as progress:
        reading = progress.add_task(f"reading {path.name}", total=path.stat().st_size)
        content = restricted_pickle.load(path, lambda n: progress.advance(reading, n))
        splits = _check_layout(content, path)
        del content
        rows = sum(len(s["source"]) * (4 if "2.5d_factor" in s else 2) for s in splits.values())
        task = progress.add_task("writing its cache", total=rows)
        try:
            # What conversions of the same file left that were killed, whatever its digest then.
            remove_abandoned(folder.parent, folder.name.rpartition("-")[0])
            with new_folder(folder) as part:
                recordings = {}
                for name in SPLITS:
                    # Popped, so that each split's memory is free before the next is looked at.
                    recordings[name] = _write_split(
                        splits.pop(name),
                        f"{path}: {name}",
                        part / name,
                        lambda n: progress.advance(task, n),
                    )
                arrays = {
                    split: sorted(f.stem.removeprefix(f"{split}_") for f in part.glob(f"{split}_*"))
                    for split in SPLITS
                }
                cache = {"source": str(path.resolve()), "arrays": arrays, "recordings": recordings}
                (part / "cache.json").write_text(json.dumps(cache))
        except OSError as error:
            # Another process may have converted the same file meanwhile; its cache is as good.
            if not (folder / "cache.json").is_file():
                raise _cannot_write(folder, error) from error
    _remove_outdated(folder)


def _remove_outdated(folder: Path) -> None:
    """Removes caches of earlier versions of the same file, each about as large as the file."""
    source = _source_of(folder / "cache.json")
    for other in folder.parent.glob(f"{folder.name.rpartition('-')[0]}-*/cache.json"):
        if other.parent != folder and source is not None and _source_of(other) == source:
            shutil.rmtree(other.parent, ignore_errors=True)


def _source_of(cache: Path) -> str | None:
    """Returns the file that a cache was made of; None where its description is damaged."""
    try:
        found = json.loads(cache.read_text())["source"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return found if isinstance(found, str) else None


def _cannot_write(folder: Path, error: OSError) -> DataError:
    return DataError(
        f"cannot write the cache {folder}: {error.strerror or error}; set data.h36m.cache_dir to a "
        "folder with room for about the size of the Human3.6M file"
    )


def _check_layout(content, path: Path) -> dict[str, dict]:
    """Checks the file's splits: every key, shape and type as expected."""
    if not isinstance(content, dict):
        raise DataError(
            f"{path} holds a {type(content).__name__}, expected a dictionary with the keys "
            "'train' and 'test'"
        )
    splits = {}
    for name in SPLITS:
        if not isinstance(content.get(name), dict):
            raise DataError(
                f"{path} has no dictionary under the key {name!r}; its keys are "
                f"{sorted(map(str, content))}"
            )
        splits[name] = _check_split(content.pop(name), f"{path}: {name}", name == "test")
    return splits


def _check_split(split: dict, what: str, needs_scale: bool) -> dict:
    """Returns the columns of one split that are used."""
    scale = ["action", "2.5d_factor", "joints_2.5d_image"]
    required = ["joint_2d", "joint3d_image", "camera_name", "source", *(scale * needs_scale)]
    missing = [key for key in required if key not in split]
    if missing:
        raise DataError(
            f"{what} lacks the key(s) {missing}; it has {sorted(map(str, split))}. The file "
            "h36m_sh_conf_cam_source_final.pkl has them all"
        )
    columns = {key: split[key] for key in [*required, "confidence", *scale] if key in split}
    if not all(key in columns for key in scale[1:]):
        columns = {key: column for key, column in columns.items() if key not in scale[1:]}
    for key, column in columns.items():
        if not isinstance(column, (np.ndarray, list, tuple)):
            raise DataError(f"{what}/{key} is a {type(column).__name__}, expected an array")

    rows = len(columns["source"])
    if not rows:
        raise DataError(f"{what}/source is empty, expected one value per frame")
    joints = (rows, NUM_JOINTS)
    shapes = {
        "joint_2d": [(*joints, 2), (*joints, 3)],
        "confidence": [(*joints, 1), joints],
        "joint3d_image": [(*joints, 3)],
        "camera_name": [(rows,)],
        "source": [(rows,)],
        "action": [(rows,)],
        "2.5d_factor": [(rows,)],
        "joints_2.5d_image": [(*joints, 3)],
    }
    text = ("camera_name", "source", "action")
    for key in columns:
        if key in text and not isinstance(columns[key], np.ndarray):
            shape = (len(columns[key]),)  # a list of text stays one: as an array it would grow
        else:
            columns[key] = _as_array(columns[key], f"{what}/{key}")
            shape = columns[key].shape
            if key not in text and columns[key].dtype.kind not in "fiu":
                raise DataError(
                    f"{what}/{key} holds {columns[key].dtype} values, expected real numbers"
                )
        wider = key == "joint_2d" and shape[:2] == joints and len(shape) == 3 and shape[2] > 3
        if shape not in shapes[key] and not wider:
            expected = " or ".join(map(str, shapes[key]))
            raise DataError(
                f"{what}/{key} has shape {shape}, expected {expected} "
                f"({what}/source has {rows} rows)"
            )
    return columns


def _as_array(column, what: str) -> np.ndarray:
    try:
        return np.asarray(column)
    except ValueError as error:
        raise DataError(f"{what} is not a rectangular array: {error}") from error


def _write_split(
    columns: dict, what: str, prefix: Path, progress: Callable[[int], None]
) -> list[Recording]:
    """Writes the arrays of one split to prefix_*.npy, emptying `columns` on the way."""
    recordings = _find_recordings(columns, what)
    width, height = _find_resolutions(columns.pop("camera_name"), what)
    rows = len(width)

    def write(name, shape, parts):
        with open(f"{prefix}_{name}.npy", "wb") as file:
            header = {"descr": "<f4", "fortran_order": False, "shape": shape}
            np.lib.format.write_array_header_1_0(file, header)
            for part in parts:
                # Not through a memory map: its dirty pages would count as this process's memory.
                file.write(np.ascontiguousarray(part, "<f4").data)
                progress(len(part))

    def parts_of(key) -> Iterator[tuple[slice, np.ndarray]]:
        for first in range(0, rows, _ROWS_PER_PART):
            part = slice(first, min(first + _ROWS_PER_PART, rows))
            with np.errstate(over="ignore"):  # reported below, as infinity
                array = np.asarray(columns[key][part], np.float32)
            check_finite(array, f"{what}/{key}", recordings, first_row=first)
            yield part, array

    def poses_2d():
        confidence = parts_of("confidence") if "confidence" in columns else None
        for part, pixels in parts_of("joint_2d"):
            pose = np.ones((len(pixels), NUM_JOINTS, 3), np.float32)
            pose[..., :2] = normalise(pixels[..., :2], width[part], height[part])
            if confidence is not None:
                pose[..., 2] = next(confidence)[1].reshape(len(pixels), NUM_JOINTS)
            yield pose

    def poses_3d():
        for part, pixels in parts_of("joint3d_image"):
            yield normalise(pixels, width[part], height[part])

    def mm_per_unit():
        for part, factor in parts_of("2.5d_factor"):
            if not (factor > 0).all():
                row = part.start + int(np.argmin(factor > 0))
                raise DataError(
                    f"{what}/2.5d_factor is {columns['2.5d_factor'][row]} at row {row}, expected "
                    "a positive number (millimetres per pixel)"
                )
            yield columns["2.5d_factor"][part] * width[part] / 2

    write("poses_2d", (rows, NUM_JOINTS, 3), poses_2d())
    del columns["joint_2d"]
    columns.pop("confidence", None)
    write("poses_3d", (rows, NUM_JOINTS, 3), poses_3d())
    del columns["joint3d_image"]
    if "2.5d_factor" in columns:
        millimetres = (array for _, array in parts_of("joints_2.5d_image"))
        write("poses_3d_mm", (rows, NUM_JOINTS, 3), millimetres)
        write("mm_per_unit", (rows,), mm_per_unit())
    return recordings


def normalise(pixels: np.ndarray, width: np.ndarray, height: np.ndarray) -> np.ndarray:
    """Turns pixels into units of half the image width, x and y from the middle of the image.

    The order of operations and their precision are those of the authors' release, which gives the
    same float32 values bit for bit.

    Args:
      pixels: (rows, joints, 2 or 3) float32 x, y and, if there, depth.
      width, height: (rows,) integers.

    Returns:
      (rows, joints, 2 or 3) float32.
    """
    scaled = pixels / width[:, None, None].astype(np.float32) * np.float32(2)
    middle = np.stack([np.ones(len(width)), height / width], axis=-1)
    scaled[..., :2] = scaled[..., :2] - middle[:, None]
    return scaled


def _find_recordings(columns: dict, what: str) -> list[Recording]:
    """Starts a new recording at every change of source."""
    spans = _text_runs(columns.pop("source"))
    actions = _text_runs(columns.pop("action")) if "action" in columns else [("", 0, spans[-1][2])]
    recordings, current = [], 0
    for source, start, stop in spans:
        while actions[current][2] <= start:
            current += 1
        action, _, action_stop = actions[current]
        if action_stop < stop:
            raise DataError(
                f"{what}/action changes from {action!r} to {actions[current + 1][0]!r} at row "
                f"{action_stop}, in the middle of source {source!r}; one source has one action"
            )
        recordings.append(Recording(source, action, start, stop))
    return recordings


def _find_resolutions(cameras, what: str) -> tuple[np.ndarray, np.ndarray]:
    """Finds the (rows,) width and height of each row's image."""
    sizes = np.zeros((2, len(cameras)), np.int32)
    for camera, start, stop in _text_runs(cameras):
        if camera not in CAMERA_RESOLUTIONS:
            raise DataError(
                f"{what}/camera_name is {camera!r} at row {start}; known cameras are "
                f"{', '.join(CAMERA_RESOLUTIONS)}"
            )
        sizes[:, start:stop] = np.array(CAMERA_RESOLUTIONS[camera])[:, None]
    return sizes[0], sizes[1]


def _text_runs(column) -> list[tuple[str, int, int]]:
    """Finds (value, start, stop) of each stretch of equal text, a part of the column at a time."""
    found = []
    for first in range(0, len(column), _ROWS_PER_PART):
        part = np.asarray(column[first : first + _ROWS_PER_PART])
        part = part.astype(str) if part.dtype.kind != "U" else part
        for start, stop in runs(part):
            value = str(part[start])
            if found and found[-1][0] == value:
                found[-1] = (value, found[-1][1], first + stop)
            else:
                found.append((value, first + start, first + stop))
    return found
