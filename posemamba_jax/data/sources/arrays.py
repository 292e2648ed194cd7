"""Poses of any skeleton from .npz files, one recording in each.

A file holds, under these names,

    poses_2d     (frames, joints, 2 or 3) pixels, with the detector's confidence where it gives one
    poses_3d_mm  (frames, joints, 3) millimetres: x right, y down, z away from the camera
    image_size   (2,) width and height in pixels
    action       text, optional: what figures are grouped by; empty if not given

What the joints are is a setting, `data.skeleton`. A camera's focal length is not needed: a unit of
frame t is the length that half the image's width shows at the root's depth, which is fitted to the
two poses (weak perspective), as Human3.6M's targets are.
"""

import dataclasses
import glob
from pathlib import Path

import numpy as np

from posemamba_jax.data.clips import ArrayClips, DataError, Recording
from posemamba_jax.errors import KeypointError
from posemamba_jax.files.npy import read_arrays
from posemamba_jax.files.reading import user_path
from posemamba_jax.limits import Section, number
from posemamba_jax.skeleton import Skeleton


@dataclasses.dataclass(frozen=True)
class ArraysConfig(Section, path="data.arrays"):
    """Which files of poses to use.

    Attributes:
      train, test: .npz files, folders of them, or glob patterns.
      fps: frames per second of all of them.

    Raises:
      ConfigError: a value is out of its range.
    """

    train: tuple[str, ...] = ()
    test: tuple[str, ...] = ()
    fps: float = number(50.0, at_least=1, at_most=1e4)


def build(
    options: ArraysConfig,
    *,
    skeleton: Skeleton,
    clip_len: int,
    stride: int,
    split: str,
    input_2d: str,
) -> ArrayClips:
    """Makes clips of the files of a split.

    Args:
      options: which files.
      skeleton: what the joints in them are.
      clip_len, stride: frames in a clip and between the starts of neighbouring clips.
      split: "train" or "test".
      input_2d: what the 2D poses in the files are, "detected" or "ground_truth".

    Raises:
      DataError: there are no files, or one cannot be used; names it.
    """
    parts, recordings, rows = [], [], 0
    for path in _find(getattr(options, split), f"data.arrays.{split}"):
        arrays, action = _read(path, skeleton)
        stop = rows + len(arrays["poses_2d"])
        parts.append(arrays)
        recordings.append(Recording(str(path), action, rows, stop))
        rows = stop
    return ArrayClips(
        "arrays",
        recordings,
        skeleton=skeleton,
        **{key: np.concatenate([part[key] for part in parts]) for key in parts[0]},
        clip_len=clip_len,
        stride=stride,
        fps=options.fps,
        cover_end=split == "test",
        input_2d=input_2d,
    )


def _find(patterns: tuple[str, ...], option: str) -> list[Path]:
    if not patterns:
        raise DataError(f"{option} is empty: give .npz files, folders of them, or patterns")
    found = []
    for pattern in patterns:
        place = user_path(pattern)
        paths = place.glob("*.npz") if place.is_dir() else map(Path, glob.glob(str(place)))
        paths = sorted(paths)
        if not paths:
            raise DataError(f"{option}: {pattern}: there is no such file, or no .npz file in it")
        found += paths
    return list(dict.fromkeys(found))


def _read(path: Path, skeleton: Skeleton) -> tuple[dict[str, np.ndarray], str]:
    """Reads one file's arrays as `ArrayClips` takes them, and its action."""
    try:
        content = read_arrays(path)
    except KeypointError as error:
        raise DataError(str(error)) from None
    pixels = _poses(content, "poses_2d", (2, 3), skeleton, path)
    millimetres = _poses(content, "poses_3d_mm", (3,), skeleton, path)
    if len(pixels) != len(millimetres):
        raise DataError(
            f"{path}: poses_2d has {len(pixels)} frames and poses_3d_mm {len(millimetres)}; both "
            "must have the same"
        )
    size = content.get("image_size")
    if not isinstance(size, np.ndarray) or size.shape != (2,) or not (size > 0).all():
        raise DataError(f"{path}: image_size is {size!r}, expected width and height in pixels")
    width, height = (float(side) for side in size)
    confidence = pixels[..., 2:] if pixels.shape[-1] == 3 else np.ones_like(pixels[..., :1])
    flat = pixels[..., :2] * (2 / width) - [1, height / width]
    relative = millimetres - millimetres[:, [skeleton.root]]
    mm_per_unit = _fit_scale(flat - flat[:, [skeleton.root]], relative[..., :2], path)
    poses_3d = relative / mm_per_unit[:, None, None]
    poses_3d[..., :2] += flat[:, [skeleton.root]]
    arrays = {
        "poses_2d": np.concatenate([flat, confidence], axis=-1),
        "poses_3d": poses_3d,
        "poses_3d_mm": millimetres,
        "mm_per_unit": mm_per_unit,
    }
    action = content.get("action", np.array(""))
    return {key: array.astype(np.float32) for key, array in arrays.items()}, str(action)


def _poses(content, key: str, channels: tuple[int, ...], skeleton: Skeleton, path: Path):
    """Takes one array of a file in float64, checked."""
    array = content.get(key)
    expected = f"(frames, {skeleton.num_joints}, {' or '.join(map(str, channels))})"
    if not isinstance(array, np.ndarray):
        raise DataError(f"{path}: there is no array {key} {expected}; found {', '.join(content)}")
    fits = array.ndim == 3 and array.shape[1] == skeleton.num_joints and array.shape[2] in channels
    if not fits or not len(array):
        raise DataError(
            f"{path}: {key} has shape {array.shape}, expected {expected} for the skeleton "
            f"{skeleton.name} (data.skeleton)"
        )
    if array.dtype.kind not in "fiu":
        raise DataError(f"{path}: {key} holds {array.dtype} values, expected real numbers")
    if not np.isfinite(array).all():
        frame, joint, _ = np.argwhere(~np.isfinite(array))[0]
        raise DataError(f"{path}: {key}: frame {frame}, joint {joint} is not finite")
    return array.astype(np.float64)


def _fit_scale(flat: np.ndarray, millimetres: np.ndarray, path: Path) -> np.ndarray:
    """Fits (frames,) millimetres per unit to root-relative x, y (frames, joints, 2)."""
    scale = (flat * millimetres).sum((1, 2)) / np.maximum((flat**2).sum((1, 2)), 1e-12)
    if not (scale > 0).all():
        raise DataError(
            f"{path}: frame {np.argmin(scale > 0)}: the 2D and 3D poses do not show the same (x "
            "goes right and y down in both)"
        )
    return scale
