"""Clips of 2D poses without 3D ones, for training beside sources that have both.

A joint that was not seen has x = y = confidence = 0. The training loss counts each joint by its
confidence, and not at all in frames whose root was not seen, because targets are relative to it.
"""

from collections.abc import Sequence

import numpy as np

from posemamba_jax.data.clips import ArrayClips, DataError, Recording, clip_offsets
from posemamba_jax.skeleton import Skeleton

# Of a clip's frames, the root must be seen in this share at least.
MIN_ROOT_SEEN = 0.5


def build_clips_2d(
    name: str,
    recordings: Sequence[Recording],
    poses_2d: np.ndarray,
    *,
    skeleton: Skeleton,
    clip_len: int,
    stride: int,
    fps: float,
    input_2d: str,
    check: bool = True,
) -> ArrayClips:
    """Makes a source of 2D clips in which the root is mostly seen.

    A recording shorter than a clip is played forth and back until the clip is full: evenly
    repeated frames would slow the motion down, and no 3D target ties the clip to real time.

    Args:
      name: what messages call the source.
      recordings: the sequences that the rows hold.
      poses_2d: (rows, joints, 3) x, y, confidence.
      skeleton: what the joints are.
      clip_len, stride: frames in a clip and between the starts of neighbouring clips.
      fps: frames per second.
      input_2d: "ground_truth" for poses that people marked, "detected" for a detector's.
      check: whether to look for values that are not finite.

    Raises:
      DataError: nothing is left, or a value is not finite.
    """
    offsets = []
    for recording in recordings:
        frames = _windows(recording.stop - recording.start, clip_len, stride)
        seen = np.asarray(poses_2d[recording.start : recording.stop, skeleton.root, 2]) > 0
        offsets.append(frames[seen[frames].mean(axis=1) >= MIN_ROOT_SEEN])
    if not sum(map(len, offsets)):
        raise DataError(
            f"{name}: in none of the {len(recordings)} recordings is the root seen long enough, so "
            "there are no clips to train on"
        )
    return ArrayClips(
        name,
        recordings,
        skeleton=skeleton,
        poses_2d=poses_2d,
        clip_len=clip_len,
        stride=stride,
        fps=fps,
        offsets=offsets,
        input_2d=input_2d,
        check=check,
    )


def _windows(length: int, clip_len: int, stride: int) -> np.ndarray:
    if length >= clip_len:
        return clip_offsets(length, clip_len, stride)
    period = max(2 * length - 2, 1)
    frames = np.arange(clip_len, dtype=np.int64) % period
    return np.minimum(frames, period - frames)[None] if length > 1 else np.zeros_like(frames)[None]


def refuse_test_split(name: str, split: str) -> None:
    """Raises DataError for the test split of a source without 3D poses."""
    if split not in ("train", "test"):
        raise DataError(f"split is {split!r}, expected 'train' or 'test'")
    if split == "test":
        raise DataError(
            f"{name} has 2D poses only and cannot be evaluated; train on it in a mixture "
            "(data.source: mixture) whose data.mixture.test names a source with 3D poses"
        )
