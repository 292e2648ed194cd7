"""MMPose 1.x predictions: the top-down demo's file, and the inferencer's lists and folders.

    {"meta_info": {...}, "instance_info": [{"frame_id": 1, "instances": [...]}, ...]}
    [{"frame_id": 0, "instances": [...]}, ...]       a video through the inferencer
    [[instance, ...], [instance, ...], ...]          a list of instances per frame
    [instance, ...]                                  one image; a folder of these is a clip

An instance is {"keypoints": [[x, y], ...], "keypoint_scores": [...], "track_id": optional}.
"""

from pathlib import Path
from typing import Any

import numpy as np

from posemamba_jax.files import json_reading as parsing
from posemamba_jax.files.numbering import Numbering
from posemamba_jax.predict.keypoints.alphapose import common_joint_set
from posemamba_jax.predict.keypoints.contract import (
    Detection,
    KeypointError,
    Keypoints2D,
    ReadOptions,
)
from posemamba_jax.predict.keypoints.openpose import numbered_json_files


def read(path: Path, data: Any, options: ReadOptions) -> Keypoints2D:
    """Reads any of the layouts above; `data` is None for a folder."""
    numbering = Numbering({})
    if path.is_dir():
        files, numbering = numbered_json_files(path)
        frames = [(n, file, "file", _instances(file)) for n, file in files]
    else:
        entries = data
        if isinstance(data, dict):
            entries = parsing.list_member(data, "instance_info", path, "the file")
        if not isinstance(entries, list):
            raise KeypointError(
                f"{path}: expected MMPose's list of frames, found {parsing.quote(data)}"
            )
        if entries and all(isinstance(e, dict) and "keypoints" in e for e in entries):
            entries = [entries]
        frames = [(*_frame(entry, i, path), i) for i, entry in enumerate(entries)]
        frames = [(number, path, f"frame {i}", instances) for number, instances, i in frames]
    if not frames:
        raise KeypointError(f"{path}: holds no frames")

    people, detections = [], []
    for number, source, where, instances in frames:
        for p, instance in enumerate(instances):
            place = f"{where}, instance {p}"
            keypoints = _keypoints(instance, source, place)
            track = instance.get("track_id")
            if track is not None:
                track = parsing.integer(track, source, f"{place}, 'track_id'")
                track = track if track >= 0 else None
            people.append((place, keypoints))
            detections.append(Detection(number, keypoints, track))
    for_17 = "h36m17" if "h36m" in _dataset_name(data) else "coco17"
    numbers = [number for number, *_ in frames]
    return Keypoints2D(
        path=path,
        format="mmpose",
        joint_set=common_joint_set(path, people, options, for_17),
        coordinates=options.coordinates or "pixels",
        detections=tuple(detections),
        frames=(min(numbers), max(numbers)),
        step=numbering.step,
        origin=numbering.origin,
        notes=numbering.notes,
    )


def _dataset_name(data: Any) -> str:
    meta = data.get("meta_info") if isinstance(data, dict) else None
    name = meta.get("dataset_name") if isinstance(meta, dict) else None
    return name.lower() if isinstance(name, str) else ""


def _instances(file: Path) -> list:
    data = parsing.load_json(file)
    if isinstance(data, dict):
        return parsing.list_member(data, "instances", file, "file")
    if not isinstance(data, list):
        raise KeypointError(f"{file}: expected a list of instances, found {parsing.quote(data)}")
    return data


def _frame(entry: Any, index: int, path: Path) -> tuple[int, list]:
    where = f"frame {index}"
    if isinstance(entry, list):
        return index, entry
    instances = parsing.list_member(entry, "instances", path, where)
    number = parsing.frame_number(entry.get("frame_id", index), path, f"{where}, 'frame_id'")
    return number, instances


def _keypoints(instance: Any, path: Path, where: str) -> np.ndarray:
    points = parsing.number_array(
        parsing.member(instance, "keypoints", path, where),
        path,
        f"{where}, 'keypoints'",
        "a list of [x, y] pairs",
    )
    if points.ndim != 2 or points.shape[1] not in (2, 3) or not len(points):
        raise KeypointError(
            f"{path}: {where}, 'keypoints': expected a list of [x, y] pairs, found shape "
            f"{list(points.shape)}"
        )
    if "keypoint_scores" in instance:
        scores = parsing.number_array(
            instance["keypoint_scores"], path, f"{where}, 'keypoint_scores'", "one per joint"
        )
        if scores.shape != points.shape[:1]:
            raise KeypointError(
                f"{path}: {where}: {len(points)} keypoints but scores of shape {list(scores.shape)}"
            )
    else:
        scores = points[:, 2] if points.shape[1] == 3 else np.ones(len(points))
    parsing.confidences(scores, path, where)
    return np.column_stack([points[:, :2], scores]).astype(np.float32)
