"""MediaPipe Pose landmarks, written as JSON by a few lines of the user's own.

    {"image_size": [width, height], "fps": 30, "frames": [FRAME, ...]}     or just [FRAME, ...]

A FRAME is null (nobody), a list of 33 landmarks, a list of such lists (several people), or an
object {"pose_landmarks": either of these, "frame": number, "ids": [one per person]}, the last two
optional. A landmark is {"x", "y", "z", "visibility"} or [x, y, z, visibility], x and y as
fractions of the image's width and height; visibility is the confidence, 1 where it is absent.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from posemamba_jax.files import json_reading as parsing
from posemamba_jax.files.writing import write_text
from posemamba_jax.predict.keypoints.alphapose import common_joint_set
from posemamba_jax.predict.keypoints.contract import (
    Detection,
    KeypointError,
    Keypoints2D,
    ReadOptions,
)

_LANDMARK_KEYS = ("pose_landmarks", "landmarks")


def read(path: Path, data: Any, options: ReadOptions) -> Keypoints2D:
    """Reads the layout above. World landmarks are of no use: they are not image coordinates."""
    header = data if isinstance(data, dict) else {}
    frames = data
    if isinstance(data, dict):
        frames = parsing.list_member(data, "frames", path, "the file")
    if not isinstance(frames, list) or not frames:
        raise KeypointError(
            f"{path}: expected a list of frames with MediaPipe landmarks, found "
            f"{parsing.quote(frames)}"
        )
    people, detections, numbers = [], [], []
    for i, frame in enumerate(frames):
        number, persons, ids = _frame(frame, i, path)
        numbers.append(number)
        for p, (person, track) in enumerate(zip(persons, ids, strict=True)):
            where = f"frame {i}, person {p}"
            keypoints = _landmarks(person, path, where)
            people.append((where, keypoints))
            detections.append(Detection(number, keypoints, track))
    size, fps = header.get("image_size"), header.get("fps")
    return Keypoints2D(
        path=path,
        format="mediapipe",
        joint_set=common_joint_set(path, people, options, for_17="coco17"),
        coordinates=options.coordinates or "image",
        detections=tuple(detections),
        frames=(min(numbers), max(numbers)),
        image_size=None if size is None else parsing.image_size(size, path, "'image_size'"),
        fps=None if fps is None else parsing.frame_rate(fps, path, "'fps'"),
    )


def write(
    path: Path,
    people: Sequence[np.ndarray],
    image_size: tuple[int, int],
    fps: float,
    num_frames: int,
) -> None:
    """Writes landmarks in the layout above, people counted from 1.

    Args:
      path: the file, replaced if it exists.
      people: arrays (frames, 33, 4) of x, y and z in pixels and visibility, NaN in frames without
        the person.
      image_size: (width, height) in pixels. fps: frames per second.
      num_frames: how many of the frames to write.

    Raises:
      OSError: the file cannot be written; what was there stays.
    """
    width, height = image_size
    share = np.array([1 / width, 1 / height, 1 / width, 1])
    frames = []
    for t in range(num_frames):
        ids = [i for i, points in enumerate(people) if np.isfinite(points[t, 0, 0])]
        shown = [np.round(people[i][t].astype(np.float64) * share, 6).tolist() for i in ids]
        frame = {"pose_landmarks": shown, "ids": [i + 1 for i in ids]}
        frames.append(frame if ids else None)
    header = {"image_size": [width, height], "fps": fps, "frames": frames}
    write_text(path, json.dumps(header, allow_nan=False) + "\n")


def is_landmark(value: Any) -> bool:
    """Tells whether a JSON value looks like one landmark."""
    if isinstance(value, dict):
        return "x" in value and "y" in value
    return isinstance(value, list) and bool(value) and isinstance(value[0], int | float)


def _frame(frame: Any, index: int, path: Path) -> tuple[int, list, list[int | None]]:
    """Reads (frame number, people's landmark lists, their identities) of one FRAME."""
    number, ids = index, None
    if isinstance(frame, dict):
        if "frame" in frame:
            number = parsing.frame_number(frame["frame"], path, f"frame {index}, 'frame'")
        ids = frame.get("ids")
        key = next((k for k in _LANDMARK_KEYS if k in frame), _LANDMARK_KEYS[0])
        frame = parsing.member(frame, key, path, f"frame {index}")
    if frame is None:
        frame = []
    if not isinstance(frame, list):
        raise KeypointError(
            f"{path}: frame {index}: expected a list of landmarks, found {parsing.quote(frame)}"
        )
    persons = [frame] if frame and is_landmark(frame[0]) else frame
    if ids is None:
        return number, persons, [None] * len(persons)
    if not isinstance(ids, list) or len(ids) != len(persons):
        raise KeypointError(
            f"{path}: frame {index}: 'ids' must be a list with one number for each of "
            f"{len(persons)} people, found {parsing.quote(ids)}"
        )
    return number, persons, [parsing.integer(v, path, f"frame {index}, 'ids'") for v in ids]


def _landmarks(person: Any, path: Path, where: str) -> np.ndarray:
    if not isinstance(person, list) or not person:
        raise KeypointError(
            f"{path}: {where}: expected a list of landmarks, found {parsing.quote(person)}"
        )
    rows = []
    for j, landmark in enumerate(person):
        place = f"{where}, landmark {j}"
        if isinstance(landmark, dict):
            x = parsing.member(landmark, "x", path, place)
            y = parsing.member(landmark, "y", path, place)
            rows.append([x, y, landmark.get("visibility", 1.0)])
        elif isinstance(landmark, list) and 2 <= len(landmark) <= 5:
            rows.append([*landmark[:2], landmark[3] if len(landmark) > 3 else 1.0])
        else:
            raise KeypointError(
                f"{path}: {place}: expected x, y, z, visibility, found {parsing.quote(landmark)}"
            )
    values = parsing.number_array(rows, path, where, "numbers x, y, visibility")
    parsing.confidences(values[:, 2], path, where)
    return values.astype(np.float32)
