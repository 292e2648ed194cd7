"""AlphaPose results: a flat list of {image_id, keypoints [3K], score, idx}, one entry a person."""

from pathlib import Path
from typing import Any

import numpy as np

from posemamba_jax.data import joint_sets
from posemamba_jax.files import json_reading as parsing
from posemamba_jax.files.numbering import number_names
from posemamba_jax.predict.keypoints.contract import (
    Detection,
    KeypointError,
    Keypoints2D,
    ReadOptions,
)


def read(path: Path, data: Any, options: ReadOptions) -> Keypoints2D:
    """Reads AlphaPose's list; frames without anybody are absent, image_id's last number is the
    frame's.
    """
    if not isinstance(data, list):
        raise KeypointError(
            f"{path}: expected AlphaPose's flat list of detections, found {parsing.quote(data)}; "
            f"run AlphaPose with its default --format"
        )
    names, rows = [], []
    for i, entry in enumerate(data):
        where = f"entry {i}"
        name = parsing.member(entry, "image_id", path, where)
        name = str(name) if isinstance(name, int) and abs(name) < 2**53 else name
        if not isinstance(name, str):
            raise KeypointError(
                f"{path}: {where}: 'image_id' must be an image's name, found {parsing.quote(name)}"
            )
        where = f"entry {i} (image {parsing.quote(name)})"
        triples = parsing.flat_triples(
            parsing.member(entry, "keypoints", path, where), path, f"{where}, 'keypoints'"
        )
        names.append(name)
        rows.append((where, triples, _track(entry, path, where)))

    numbering = number_names(names, what="images", order="appearance")
    numbers = numbering.numbers
    for name, number in numbers.items():
        parsing.frame_number(number, path, f"image_id {parsing.quote(name)}")
    joint_set = common_joint_set(path, [(w, k) for w, k, _ in rows], options, for_17="coco17")
    frames = [numbers[name] for name in names]
    return Keypoints2D(
        path=path,
        format="alphapose",
        joint_set=joint_set,
        coordinates=options.coordinates or "pixels",
        detections=tuple(
            Detection(frame, keypoints, track)
            for frame, (_, keypoints, track) in zip(frames, rows, strict=True)
        ),
        frames=(min(frames), max(frames)),
        step=numbering.step,
        origin=numbering.origin,
        notes=numbering.notes,
    )


def _track(entry: dict, path: Path, where: str) -> int | None:
    value = entry.get("idx")
    while isinstance(value, list) and len(value) == 1:
        value = value[0]
    # Without tracking, some versions leave a score here: a fraction identifies nobody.
    if value is None or (isinstance(value, float) and not value.is_integer()):
        return None
    return parsing.integer(value, path, f"{where}, 'idx'")


def common_joint_set(
    path: Path,
    people: list[tuple[str, np.ndarray]],
    options: ReadOptions,
    for_17: str | None,
) -> str:
    """Finds the joint set that all people of a file share; `people` are (where, (joints, 3))
    pairs.
    """
    if not people:
        raise KeypointError(f"{path}: holds no detections")
    first_where, first = people[0]
    for where, keypoints in people:
        if len(keypoints) != len(first):
            raise KeypointError(
                f"{path}: {where}: has {len(keypoints)} joints, but {first_where} has {len(first)}"
            )
    try:
        stacked = np.stack([k for _, k in people]) if for_17 is None else None
        return joint_sets.resolve(len(first), options.joint_set, for_17, stacked)
    except ValueError as error:
        raise KeypointError(f"{path}: {first_where}: {error}") from None
