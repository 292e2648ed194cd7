"""MPI-INF-3DHP (Mehta et al., 3DV 2017) from the two files that P-STMO's preparation writes.

    data_train_3dhp.npz   {"S1 Seq1": [{camera: {"data_2d", "data_3d"}}, fps], ...}
    data_test_3dhp.npz    {"TS1": {"data_2d", "data_3d", "valid"}, ...}

data_2d is (frames, 17, 2) pixels, data_3d (frames, 17, 3) millimetres in camera space, valid
(frames,). The 2D poses are ground truth. Joints come in the file's order and leave in that of
Human3.6M-17, so that limbs, weights of joints and mirroring mean the same everywhere.
"""

import dataclasses
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from posemamba_jax.data.clips import ArrayClips, DataError, Recording, check_finite
from posemamba_jax.files.npy import load_object
from posemamba_jax.limits import Section
from posemamba_jax.skeleton import H36M17

# Most recordings have 25 frames per second, some 50; nothing is computed with it.
FPS = 25.0
NUM_JOINTS = 17
PELVIS = 14  # in the file's order

# FILE_JOINTS[j] is the file's joint that becomes joint j of Human3.6M-17.
FILE_JOINTS = (14, 8, 9, 10, 11, 12, 13, 15, 1, 16, 0, 5, 6, 7, 2, 3, 4)

# Width and height in pixels. All cameras of the training set that the file has are alike.
TRAIN_SIZE = (2048, 2048)
TEST_SIZES = {
    "TS1": (2048, 2048),
    "TS2": (2048, 2048),
    "TS3": (2048, 2048),
    "TS4": (2048, 2048),
    "TS5": (1920, 1080),
    "TS6": (1920, 1080),
}


@dataclasses.dataclass(frozen=True)
class MpiInf3dhpConfig(Section, path="data.mpi_inf_3dhp"):
    """Where MPI-INF-3DHP is.

    Attributes:
      train_path: data_train_3dhp.npz.
      test_path: data_test_3dhp.npz.
    """

    train_path: str = "data/mpi_inf_3dhp/data_train_3dhp.npz"
    test_path: str = "data/mpi_inf_3dhp/data_test_3dhp.npz"


def build(
    options: MpiInf3dhpConfig,
    *,
    clip_len: int,
    stride: int,
    split: str,
    input_2d: str = "ground_truth",
) -> ArrayClips:
    """Makes the clips of MPI-INF-3DHP.

    Training clips are windows of every camera's recording; targets are millimetres relative to the
    pelvis times 2 / 2048. A test clip is the window around one valid frame, which is its middle
    one; windows that reach over a recording's end repeat its first or last frame. The protocol
    "mpi_inf_3dhp" scores the middle frames.

    Args:
      options: where the files are.
      clip_len, stride: frames in a clip and between the starts of neighbouring training clips.
      split: "train" or "test" (TS1 to TS6).
      input_2d: "ground_truth", the only kind that the files have.

    Raises:
      DataError: a file cannot be used, or detections are asked for.
    """
    if split not in ("train", "test"):
        raise DataError(f"split is {split!r}, expected 'train' or 'test'")
    if input_2d != "ground_truth":
        raise DataError(
            f"MPI-INF-3DHP's files have ground-truth 2D poses only, but data.input_2d is "
            f"{input_2d!r}; set it to ground_truth"
        )
    return (_build_train if split == "train" else _build_test)(options, clip_len, stride)


def _build_train(options: MpiInf3dhpConfig, clip_len: int, stride: int) -> ArrayClips:
    recordings, arrays, rows = [], {"poses_2d": [], "poses_3d": []}, 0
    for name, one in _read_train(options.train_path):
        arrays["poses_2d"].append(_normalise(one.pixels, *TRAIN_SIZE))
        arrays["poses_3d"].append(_to_target(one.millimetres, TRAIN_SIZE[0]))
        recordings.append(Recording(name, name.rpartition(" ")[0], rows, rows + len(one.pixels)))
        rows += len(one.pixels)
    return ArrayClips(
        "mpi_inf_3dhp",
        recordings,
        skeleton=H36M17,
        **{key: np.concatenate(parts) for key, parts in arrays.items()},
        clip_len=clip_len,
        stride=stride,
        fps=FPS,
        protocol="mpi_inf_3dhp",
        input_2d="ground_truth",
    )


def _build_test(options: MpiInf3dhpConfig, clip_len: int, stride: int) -> ArrayClips:
    del stride  # one clip for every valid frame
    recordings, offsets, rows = [], [], 0
    arrays = {"poses_2d": [], "poses_3d": [], "poses_3d_mm": [], "mm_per_unit": []}
    for name, one in _read_test(options.test_path):
        width, height = TEST_SIZES[name]
        frames = len(one.pixels)
        arrays["poses_2d"].append(_normalise(one.pixels, width, height))
        arrays["poses_3d"].append(_to_target(one.millimetres, width))
        arrays["poses_3d_mm"].append(_reorder(one.millimetres).astype(np.float32))
        arrays["mm_per_unit"].append(np.full(frames, width / 2, np.float32))
        recordings.append(Recording(name, name, rows, rows + frames))
        offsets.append(windows_around(np.flatnonzero(one.valid), frames, clip_len))
        rows += frames
    return ArrayClips(
        "mpi_inf_3dhp",
        recordings,
        skeleton=H36M17,
        **{key: np.concatenate(parts) for key, parts in arrays.items()},
        clip_len=clip_len,
        stride=1,
        fps=FPS,
        offsets=offsets,
        protocol="mpi_inf_3dhp",
        input_2d="ground_truth",
    )


def windows_around(centres: np.ndarray, length: int, clip_len: int) -> np.ndarray:
    """Windows with the given frames in the middle, at position clip_len // 2.

    Args:
      centres: (clips,) frames of a recording.
      length: its number of frames; windows that reach further repeat the first or last one.
      clip_len: frames in a window.

    Returns:
      (clips, clip_len) int64 frames in 0..length-1.
    """
    steps = np.arange(clip_len, dtype=np.int64) - clip_len // 2
    return np.clip(np.asarray(centres, np.int64)[:, None] + steps, 0, length - 1)


class _Frames(NamedTuple):
    """One recording in the file's joint order."""

    pixels: np.ndarray
    millimetres: np.ndarray
    valid: np.ndarray | None = None


def _read_train(path: str) -> Iterator[tuple[str, _Frames]]:
    """Reads every camera's recording, as ("S1 Seq1 camera 0", frames)."""
    content = _load(path, "train_path")
    if set(content) & set(TEST_SIZES):
        raise DataError(f"{path} holds the test sequences; it belongs in {_OPTION}.test_path")
    for sequence in list(content):
        # Taken out one by one, so that a sequence's memory is free before the next is converted.
        value = content.pop(sequence)
        if not isinstance(value, (list, tuple)) or not value or not isinstance(value[0], dict):
            raise DataError(
                f"{path}: {sequence!r} is {_describe(value)}, expected a list [cameras, fps] that "
                "starts with a dictionary of cameras"
            )
        if not value[0]:
            raise DataError(f"{path}: {sequence!r} has no cameras")
        for camera, entry in value[0].items():
            name = f"{sequence} camera {camera}"
            yield name, _check_frames(entry, f"{path}: {sequence!r}, camera {camera}")


def _read_test(path: str) -> Iterator[tuple[str, _Frames]]:
    """Reads the test sequences that the file has, by name."""
    content = _load(path, "test_path")
    unknown = [name for name in content if name not in TEST_SIZES]
    if unknown:
        raise DataError(
            f"{path} has the sequence {unknown[0]!r}, expected {', '.join(TEST_SIZES)}; "
            f"{_OPTION}.test_path is for data_test_3dhp.npz"
        )
    for name in sorted(content):
        where = f"{path}: {name!r}"
        entry = content.pop(name)
        frames = _check_frames(entry, where)
        valid = _column(entry, "valid", where)
        if valid.size != len(frames.pixels) or valid.dtype.kind not in "biuf":
            raise DataError(
                f"{where}: valid has shape {valid.shape} and type {valid.dtype}, expected one "
                f"number for each of the {len(frames.pixels)} frames"
            )
        yield name, frames._replace(valid=valid.ravel() != 0)


_OPTION = "data.mpi_inf_3dhp"


def _load(path: str, option: str) -> dict:
    hint = f"set {_OPTION}.{option} to where it is (docs/mpi_inf_3dhp.md says how to get it)"
    content = load_object(path, "data", hint)
    if not isinstance(content, dict) or not content:
        raise DataError(f"{path}: data is {_describe(content)}, expected a dictionary of sequences")
    return content


def _check_frames(entry, where: str) -> _Frames:
    pixels, millimetres = _column(entry, "data_2d", where), _column(entry, "data_3d", where)
    for key, array, axes in (("data_2d", pixels, 2), ("data_3d", millimetres, 3)):
        expected = (len(pixels) if pixels.ndim else 0, NUM_JOINTS, axes)
        if array.shape != expected or not array.size:
            raise DataError(
                f"{where}: {key} has shape {array.shape}, expected (frames, {NUM_JOINTS}, {axes}) "
                "with as many frames in data_2d as in data_3d"
            )
        if array.dtype.kind not in "fiu":
            raise DataError(f"{where}: {key} holds {array.dtype} values, expected real numbers")
        check_finite(array, f"{where}: {key}")
    return _Frames(pixels, millimetres)


def _column(entry, key: str, where: str) -> np.ndarray:
    if not isinstance(entry, dict) or key not in entry:
        found = sorted(map(str, entry)) if isinstance(entry, dict) else _describe(entry)
        raise DataError(f"{where}: there is no {key}; found {found}")
    try:
        return np.asarray(entry[key])
    except ValueError as error:
        raise DataError(f"{where}: {key} is not a rectangular array: {error}") from error


def _describe(value) -> str:
    size = f" of {len(value)}" if isinstance(value, (dict, list, tuple)) else ""
    return f"a {type(value).__name__}{size}"


def _reorder(poses: np.ndarray) -> np.ndarray:
    return poses[:, list(FILE_JOINTS)]


def _normalise(pixels: np.ndarray, width: int, height: int) -> np.ndarray:
    """Turns (frames, 17, 2) pixels into (frames, 17, 3) x, y in units of half the width, confidence
    1.
    """
    poses = np.ones((len(pixels), NUM_JOINTS, 3), np.float32)
    poses[..., :2] = _reorder(pixels).astype(np.float64) * (2 / width) - [1, height / width]
    return poses


def _to_target(millimetres: np.ndarray, width: int) -> np.ndarray:
    """Makes (frames, 17, 3) millimetres relative to the pelvis, in units of width / 2
    millimetres.
    """
    poses = millimetres.astype(np.float64)
    return (_reorder(poses - poses[:, PELVIS : PELVIS + 1]) * (2 / width)).astype(np.float32)
