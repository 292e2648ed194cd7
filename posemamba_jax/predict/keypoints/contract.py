"""What every keypoint reader returns, and how readers complain."""

import dataclasses
from pathlib import Path
from typing import Literal

import numpy as np

from posemamba_jax.errors import KeypointError
from posemamba_jax.files.json_reading import MAX_FRAMES
from posemamba_jax.skeleton import H36M17, Skeleton

# Coordinates a file may use: pixels; fractions of the image's width and height; or the model's own
# normalisation, pixels * 2 / width - [1, height / width].
Coordinates = Literal["pixels", "image", "model"]


@dataclasses.dataclass(frozen=True)
class Detection:
    """One person in one frame.

    frame: frame number as the file has it.
    keypoints: (joints, 3) float32, x, y, confidence; a missing joint has confidence 0.
    track: the file's identity of the person, None where it gives none.
    """

    frame: int
    keypoints: np.ndarray
    track: int | None = None


@dataclasses.dataclass(frozen=True)
class Keypoints2D:
    """A keypoint file as read: nothing is filled in, smoothed or converted.

    frames: (first, last) frame number that the file covers, both included; frames of that range
        without a detection showed nobody.
    joint_set: name of the joint set (`joint_sets.JOINT_SETS`).
    image_size: (width, height) in pixels, and fps in frames per second, where the file says so.
    step, origin: where the file's own frame numbers grow by more than 1 from frame to frame: frame
        n of `frames` and `detections` is the file's origin + step * n.
    notes: what the reader decided on its own, for the user to see.
    skeleton: what the detections become in a track.
    """

    path: Path
    format: str
    joint_set: str
    coordinates: Coordinates
    detections: tuple[Detection, ...]
    frames: tuple[int, int]
    image_size: tuple[int, int] | None = None
    fps: float | None = None
    step: int = 1
    origin: int = 0
    notes: tuple[str, ...] = ()
    skeleton: Skeleton = H36M17

    def __post_init__(self):
        first, last = self.frames
        if not 0 <= last - first < MAX_FRAMES:
            raise KeypointError(
                f"{self.path}: frame numbers run from {first} to {last}; expected a span of at "
                f"most {MAX_FRAMES} frames"
            )
        if not any((d.keypoints[:, 2] > 0).any() for d in self.detections):
            raise KeypointError(
                f"{self.path}: no joint of anybody has a confidence above 0, so there is nothing "
                f"to lift"
            )

    @property
    def num_frames(self) -> int:
        return self.frames[1] - self.frames[0] + 1


@dataclasses.dataclass(frozen=True)
class ReadOptions:
    """What the user says about the file; None leaves it to the file.

    joint_set: name of the joint set. clip: which clip of a file that holds several.
    coordinates: what the file's coordinates are in.
    skeleton: of the model that lifts. Joints are converted to Human3.6M's; of another skeleton, the
        file must have its joints in its order.
    """

    joint_set: str | None = None
    clip: str | None = None
    coordinates: Coordinates | None = None
    skeleton: Skeleton = H36M17
