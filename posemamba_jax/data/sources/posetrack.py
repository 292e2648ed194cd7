"""PoseTrack18's annotated 2D tracks, one JSON file per video.

A file holds "images" (their order is that of time) and "annotations", each with image_id, track_id
and keypoints: x, y, visibility of 17 joints one after the other (nose, head_bottom, head_top, two
ears, then shoulders, elbows, wrists, hips, knees and ankles, left before right).

As in MotionBERT's training: tracks of fewer than 30 frames or with fewer than 60 % of their joints
marked are left out, and each track is scaled so that the longer side of the box around it spans
-1..1, because the files do not say how large the images are.
"""

import dataclasses
from collections import defaultdict
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.progress import track as show_progress

from posemamba_jax.data.clips import ArrayClips, DataError, Recording, runs
from posemamba_jax.data.sources.clips_2d import build_clips_2d, refuse_test_split
from posemamba_jax.files.reading import user_path
from posemamba_jax.limits import LARGEST_COUNT, Section, number
from posemamba_jax.skeleton import H36M17

FPS = 30.0
FILE_JOINTS = 17


@dataclasses.dataclass(frozen=True)
class PoseTrackConfig(Section, path="data.posetrack"):
    """Where PoseTrack18 is and what of it to use.

    Attributes:
      folder: with one .json file per video (posetrack18_annotations/train).
      min_frames: shorter tracks are left out.
      min_marked: tracks with a smaller share of joints marked are left out.

    Raises:
      ValueError: a value is out of its range.
    """

    folder: str = "data/motion2d/posetrack18_annotations/train"
    min_frames: int = number(30, at_least=1, at_most=LARGEST_COUNT)
    min_marked: float = number(0.6, at_least=0, at_most=1)


def build(
    options: PoseTrackConfig, *, clip_len: int, stride: int, split: str, input_2d: str
) -> ArrayClips:
    """Makes training clips of 2D poses.

    Args:
      options: where the files are.
      clip_len, stride: frames in a clip and between the starts of neighbouring clips.
      split: "train".
      input_2d: not used: people marked the poses, and there are no others.

    Raises:
      DataError, KeypointError: a file cannot be used, there are none, or the test split is asked
        for.
    """
    del input_2d
    refuse_test_split("posetrack", split)
    folder = user_path(options.folder)
    paths = sorted(folder.glob("*.json"))
    if not paths:
        raise DataError(
            f"{folder} has no .json files; set data.posetrack.folder to where PoseTrack18's "
            "training annotations are (docs/pretraining.md says how to get them)"
        )
    recordings, poses, rows = [], [], 0
    console = Console(stderr=True)
    for path in show_progress(paths, "reading PoseTrack18", console=console, transient=True):
        for name, keypoints in read_tracks(path).items():
            if len(keypoints) < options.min_frames:
                continue
            if (keypoints[..., 2] > 0).mean() < options.min_marked:
                continue
            poses.append(_to_pose(fit_into_box(keypoints)))
            recordings.append(Recording(f"{path.stem} {name}", "", rows, rows + len(keypoints)))
            rows += len(keypoints)
    if not recordings:
        raise DataError(
            f"{folder}: none of the tracks in {len(paths)} files has {options.min_frames} frames "
            f"with {options.min_marked:.0%} of the joints marked"
        )
    return build_clips_2d(
        "posetrack",
        recordings,
        np.concatenate(poses),
        skeleton=H36M17,
        clip_len=clip_len,
        stride=stride,
        fps=FPS,
        input_2d="ground_truth",
    )


def read_tracks(path: Path) -> dict[str, np.ndarray]:
    """Tracks of a file: name -> (frames, 17, 3) x, y in pixels and visibility, in file joints.

    Frames follow each other in the order of the images that have annotations at all; where a
    person is missing from one of these, the track goes on as another. Of several annotations of
    one track in one image the first counts.

    Raises:
      DataError, KeypointError: the file is not a PoseTrack annotation; names the place.
    """
    # Imported here: the keypoint readers read through this package themselves.
    from posemamba_jax.files import json_reading as parsing

    content = parsing.load_json(path)
    images = parsing.list_member(content, "images", path, "the file")
    annotations = parsing.list_member(content, "annotations", path, "the file")
    order = {}
    for n, image in enumerate(images):
        image_id = parsing.member(image, "id", path, f"image {n}")
        order[parsing.integer(image_id, path, f"image {n}, 'id'")] = n

    marks = defaultdict(dict)
    for n, annotation in enumerate(annotations):
        where = f"annotation {n}"
        if isinstance(annotation, dict) and not annotation.get("keypoints"):
            continue  # a box alone, as around people who are not to be judged
        image_id, track, keypoints = (
            parsing.member(annotation, key, path, where)
            for key in ("image_id", "track_id", "keypoints")
        )
        image_id = parsing.integer(image_id, path, f"{where}, 'image_id'")
        if image_id not in order:
            raise DataError(f"{path}: {where} is of image {image_id}, which 'images' does not list")
        track = parsing.integer(track, path, f"{where}, 'track_id'")
        triples = parsing.flat_triples(keypoints, path, where)
        if len(triples) != FILE_JOINTS:
            raise DataError(
                f"{path}: {where} has {len(triples)} joints, expected PoseTrack18's {FILE_JOINTS}"
            )
        marks[track].setdefault(order[image_id], triples)

    annotated = sorted({image for of_track in marks.values() for image in of_track})
    rank = {image: n for n, image in enumerate(annotated)}
    tracks = {}
    for track, of_track in sorted(marks.items()):
        seen = sorted(of_track)
        # Rank minus position is constant as long as no annotated image is left out.
        gaps = [rank[image] - n for n, image in enumerate(seen)]
        for part, (start, stop) in enumerate(runs(gaps)):
            name = f"track {track}" + (f" part {part}" if part else "")
            tracks[name] = np.stack([of_track[image] for image in seen[start:stop]])
    return tracks


def fit_into_box(keypoints: np.ndarray) -> np.ndarray:
    """Moves and scales a track so that the longer side of the box around it spans -1..1.

    Args:
      keypoints: (frames, joints, 3) x, y and a confidence that is 0 where nothing was seen.

    Returns:
      The same, with x = y = 0 where nothing was seen.
    """
    seen = keypoints[..., 2] > 0
    points = keypoints[seen][:, :2].astype(np.float64)
    low, high = points.min(axis=0), points.max(axis=0)
    scale = max(float((high - low).max()), np.finfo(np.float32).tiny)
    fitted = keypoints.astype(np.float64)
    fitted[..., :2] = (fitted[..., :2] - (low + high) / 2) * (2 / scale)
    return np.where(seen[..., None], fitted, 0).astype(np.float32)


def _to_pose(keypoints: np.ndarray) -> np.ndarray:
    """Turns (frames, 17, 3) file joints into Human3.6M-17; a joint that was not seen is all 0."""
    from posemamba_jax.data.joint_sets import JOINT_SETS, to_h36m17

    unused = JOINT_SETS["posetrack18"].num_joints - FILE_JOINTS
    padded = np.pad(keypoints, ((0, 0), (0, unused), (0, 0)))
    return np.nan_to_num(to_h36m17(padded, "posetrack18"), nan=0.0)
