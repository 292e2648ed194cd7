"""Which format a keypoint file has, and reading it."""

import dataclasses
import os
from pathlib import Path
from typing import Any

import numpy as np

from posemamba_jax.files import json_reading as parsing
from posemamba_jax.files import npy
from posemamba_jax.files.reading import check_regular, user_path
from posemamba_jax.predict.keypoints import (
    alphapose,
    arrays,
    mediapipe,
    mmpose,
    openpose,
    videopose3d,
)
from posemamba_jax.predict.keypoints.contract import (
    Detection,
    KeypointError,
    Keypoints2D,
    ReadOptions,
)
from posemamba_jax.skeleton import H36M17

JSON_FORMATS = {
    "alphapose": alphapose.read,
    "openpose": openpose.read,
    "mmpose": mmpose.read,
    "mediapipe": mediapipe.read,
}
ARRAY_FORMATS = {"videopose3d": videopose3d.read, "array": arrays.read}
FORMATS = (*JSON_FORMATS, *ARRAY_FORMATS)
_FOLDER_FORMATS = ("openpose", "mmpose")

# In pixels a person is larger than this; smaller extents mean other units.
_LARGEST_NORMALISED = 3.0
# People smaller than this share of the image are too far away to lift, or its size is wrong.
_SMALLEST_PERSON = 0.03


def read_keypoints(
    path, format: str | None = None, options: ReadOptions | None = None
) -> Keypoints2D:
    """Reads 2D keypoints that a detector wrote.

    Args:
      path: a file, or for OpenPose and MMPose a folder of JSON files, one a frame.
      format: one of `FORMATS`; None recognises it by the contents, never by the name.
      options: what the user knows about the file.

    Raises:
      KeypointError: the file cannot be read; the message is one line that names the file, the
        frame or key, and what was expected.
    """
    path, options = user_path(path), options or ReadOptions()
    if format is not None and format not in FORMATS:
        raise KeypointError(f"unknown format {format!r}; known: {', '.join(FORMATS)}")
    if not os.path.lexists(path):
        raise KeypointError(f"{path}: no such file or folder")
    data = _load(path)
    format = format or _detect(path, data)
    _check_container(path, data, format)
    if options.skeleton != H36M17 and format != "array":
        raise KeypointError(
            f"{path}: {format} keypoints can be lifted by models of {H36M17.name} only; for "
            f"{options.skeleton.name} give a .npz or .npy array of its joints"
        )
    read = (JSON_FORMATS | ARRAY_FORMATS)[format]
    keypoints = read(path, data, options)
    if options.clip is not None and format != "videopose3d":
        raise KeypointError(f"{path}: --clip is for VideoPose3D files; this is {format}")
    _check_units(keypoints, guessed=options.coordinates is None)
    return keypoints


def _load(path: Path) -> Any:
    """Reads JSON values, a dictionary of arrays in `_Arrays`, or None for a folder."""
    if path.is_dir():
        return None
    check_regular(path, error=KeypointError)
    try:
        with path.open("rb") as file:
            magic = file.read(6)
    except OSError as error:
        raise KeypointError(f"{path}: cannot be read ({error.strerror})") from None
    if magic[:4] == b"PK\x03\x04" or magic == b"\x93NUMPY":
        return _Arrays(npy.read_arrays(path))
    if magic[:1] == b"\x80":
        raise KeypointError(f"{path}: a pickle file, which is not read (it could run code)")
    return parsing.load_json(path)


class _Arrays(dict):
    """Arrays by name; told apart from a JSON object by its type."""


def _check_container(path: Path, data: Any, format: str) -> None:
    if data is None:
        if format not in _FOLDER_FORMATS:
            raise KeypointError(f"{path}: {format} keypoints come in one file, not in a folder")
    elif isinstance(data, _Arrays) != (format in ARRAY_FORMATS):
        kind = "a .npy or .npz file" if format in ARRAY_FORMATS else "JSON"
        raise KeypointError(f"{path}: expected {kind} for format {format}")
    elif format == "videopose3d" and "positions_2d" not in data:
        raise KeypointError(
            f"{path}: expected 'positions_2d', found {', '.join(map(ascii, data)) or 'nothing'}"
        )


def _detect(path: Path, data: Any) -> str:
    """Tells the format by contents, or raises KeypointError if it is none of them."""
    if isinstance(data, _Arrays):
        return "videopose3d" if "positions_2d" in data else "array"
    if data is None:
        _, first = openpose.numbered_json_files(path)[0][0]
        data = parsing.load_json(first)
        return "openpose" if isinstance(data, dict) and "people" in data else "mmpose"
    if isinstance(data, dict):
        keys = {"people": "openpose", "instance_info": "mmpose", "frames": "mediapipe"}
        found = [name for key, name in keys.items() if key in data]
        if found:
            return found[0]
    if isinstance(data, list):
        if not data:
            raise KeypointError(f"{path}: an empty list: no detections")
        found = _detect_entry(next((e for e in data if e), None))
        if found:
            return found
    raise KeypointError(
        f"{path}: found {parsing.quote(data)}, which is none of the known formats "
        f"({', '.join(FORMATS)}); docs/prediction.md shows each"
    )


def _detect_entry(entry: Any) -> str | None:
    """Tells the format by the first entry of a list that is not empty."""
    if isinstance(entry, dict):
        for keys, name in (
            ({"image_id", "keypoints"}, "alphapose"),
            ({"people"}, "openpose"),
            ({"instances"}, "mmpose"),
            ({"keypoints", "keypoint_scores"}, "mmpose"),
            ({"pose_landmarks"}, "mediapipe"),
            ({"landmarks"}, "mediapipe"),
        ):
            if keys <= entry.keys():
                return name
        # A damaged entry is reported by the reader that comes closest.
        return "alphapose" if entry.keys() & {"image_id", "keypoints"} else None
    if isinstance(entry, list) and entry:
        if isinstance(entry[0], dict) and "keypoints" in entry[0]:
            return "mmpose"
        nested = entry[0][0] if isinstance(entry[0], list) and entry[0] else None
        if mediapipe.is_landmark(entry[0]) or mediapipe.is_landmark(nested):
            return "mediapipe"
    return None


def _check_units(keypoints: Keypoints2D, guessed: bool) -> None:
    seen = np.concatenate([d.keypoints[d.keypoints[:, 2] > 0, :2] for d in keypoints.detections])
    reach = float(np.abs(seen).max())
    if keypoints.coordinates == "pixels" and reach <= _LARGEST_NORMALISED:
        raise KeypointError(
            f"{keypoints.path}: coordinates reach only {reach:.3g}, so they are no pixels; give "
            f"--coordinates image (fractions of width and height) or model (x * 2/width - 1)"
        )
    if keypoints.coordinates != "pixels" and np.median(np.abs(seen)) > _LARGEST_NORMALISED:
        hint = "give --coordinates pixels" if guessed else "these look like pixels"
        raise KeypointError(
            f"{keypoints.path}: coordinates reach {reach:.4g}, so they are no fractions of the "
            f"image; {hint}"
        )


def with_image_size(keypoints: Keypoints2D, size: tuple[int, int] | None) -> Keypoints2D:
    """Puts keypoints into pixels, with a known image size.

    Args:
      keypoints: as read.
      size: (width, height) that the user or a video gives; it replaces the file's own.

    Raises:
      KeypointError: nobody gives a size, or more than half of the joints lie outside the image.
    """
    size = size or keypoints.image_size
    if size is None:
        raise KeypointError(
            f"{keypoints.path}: {keypoints.format} files do not say how large the image is; give "
            f"--image_size WIDTHxHEIGHT or --video CLIP"
        )
    width, height = size
    scale, shift = np.ones(2), np.zeros(2)
    if keypoints.coordinates == "image":
        scale = np.array([width, height], float)
    elif keypoints.coordinates == "model":
        scale, shift = np.full(2, width / 2), np.array([width / 2, height / 2])

    def in_pixels(values):
        xy = values[:, :2] * scale + shift
        return np.column_stack([xy, values[:, 2]]).astype(np.float32)

    detections = tuple(
        dataclasses.replace(d, keypoints=in_pixels(d.keypoints)) for d in keypoints.detections
    )
    seen = np.concatenate([d.keypoints[d.keypoints[:, 2] > 0, :2] for d in detections])
    outside = ((seen < 0) | (seen > size)).any(1).mean()
    if outside > 0.5:
        raise KeypointError(
            f"{keypoints.path}: {outside:.0%} of the joints lie outside an image of "
            f"{width}x{height}; is the image size right?"
        )
    notes = keypoints.notes
    if keypoints.coordinates == "pixels":
        notes += tuple(_remarks_on_size(detections, (width, height)))
    return dataclasses.replace(
        keypoints,
        detections=detections,
        coordinates="pixels",
        image_size=(width, height),
        notes=notes,
    )


def _remarks_on_size(detections: tuple[Detection, ...], size: tuple[int, int]) -> list[str]:
    """Remarks on people so small, or all so far in a corner, that the size may be wrong."""
    seen = [d.keypoints[d.keypoints[:, 2] > 0, :2] for d in detections]
    boxes = [points.max(0) - points.min(0) for points in seen if len(points)]
    share = float(np.median([(box / size).max() for box in boxes]))
    reach = np.max([points.max(0) for points in seen if len(points)], axis=0)
    in_a_corner = bool((reach < np.array(size) / 4).all())
    if share >= _SMALLEST_PERSON and not in_a_corner:
        return []
    where = f", and nothing lies beyond {reach[0]:.0f}, {reach[1]:.0f}" if in_a_corner else ""
    return [
        f"a person fills {share:.1%} of the {size[0]}x{size[1]} image{where}; is the image size "
        "right? Results are poor where it is not"
    ]
