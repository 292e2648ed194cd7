"""OpenPose: a JSON object per frame, people[].pose_keypoints_2d; a folder, a list or one file."""

from pathlib import Path
from typing import Any

from posemamba_jax.files import json_reading as parsing
from posemamba_jax.files.numbering import Numbering, natural_key, number_names
from posemamba_jax.predict.keypoints.alphapose import common_joint_set
from posemamba_jax.predict.keypoints.contract import (
    Detection,
    KeypointError,
    Keypoints2D,
    ReadOptions,
)


def read(path: Path, data: Any, options: ReadOptions) -> Keypoints2D:
    """Reads a folder of OpenPose's --write_json (data None), one frame, or a list of frames.

    In a folder the number that changes from name to name is the frame's, such as 12 in
    `clip_000000000012_keypoints.json` and in `frame12_2d.json`.
    """
    numbering = Numbering({})
    if path.is_dir():
        files, numbering = numbered_json_files(path)
        frames = [(number, file, "file", parsing.load_json(file)) for number, file in files]
    elif isinstance(data, dict):
        frames = [(0, path, "the frame", data)]
    elif isinstance(data, list):
        frames = [(i, path, f"frame {i}", frame) for i, frame in enumerate(data)]
    else:
        raise KeypointError(
            f"{path}: expected OpenPose frames with 'people', found {parsing.quote(data)}"
        )

    people, detections = [], []
    for number, source, where, frame in frames:
        for p, person in enumerate(parsing.list_member(frame, "people", source, where)):
            place = f"{where}, person {p}"
            values = parsing.list_member(person, "pose_keypoints_2d", source, place)
            if not values:  # OpenPose writes an empty list for hands without a body
                continue
            keypoints = parsing.flat_triples(values, source, f"{place}, 'pose_keypoints_2d'")
            people.append((f"{source.name}, {place}" if path.is_dir() else place, keypoints))
            detections.append(Detection(number, keypoints, _track(person, source, place)))
    return Keypoints2D(
        path=path,
        format="openpose",
        joint_set=common_joint_set(path, people, options, for_17="coco17"),
        coordinates=options.coordinates or "pixels",
        detections=tuple(detections),
        frames=(frames[0][0], frames[-1][0]),
        step=numbering.step,
        origin=numbering.origin,
        notes=numbering.notes,
    )


def _track(person: dict, path: Path, where: str) -> int | None:
    value = person.get("person_id")
    if isinstance(value, list):
        value = value[0] if len(value) == 1 else None
    if value is None:
        return None
    number = parsing.integer(value, path, f"{where}, 'person_id'")
    return number if number >= 0 else None  # OpenPose writes -1 when it does not track


def numbered_json_files(folder: Path) -> tuple[list[tuple[int, Path]], Numbering]:
    """Returns (frame number, file) of a folder's JSON files in order, and how they were numbered.

    Raises:
      KeypointError: there are none, or a number is too large to be a frame's.
    """
    try:
        files = sorted(folder.glob("*.json"), key=lambda file: natural_key(file.name))
    except OSError as error:
        raise KeypointError(f"{folder}: cannot be read ({error.strerror})") from None
    if not files:
        raise KeypointError(f"{folder}: the folder holds no .json files")
    names = [file.name for file in files]
    numbering = number_names(names, what="files", order="their names")
    for name, number in numbering.numbers.items():
        parsing.frame_number(number, folder / name, "the number in the file's name")
    return sorted((numbering.numbers[file.name], file) for file in files), numbering
