"""What the search for the world takes and gives: people before one camera, and their room.

Shapes: T frames, 17 joints of Human3.6M. Lengths are millimetres, angles radians. Camera axes are
x right, y down, z away from the camera; world axes are x right, y up, z towards the camera, with
the origin on the ground straight below the camera and z along the ground.
"""

import dataclasses

import numpy as np


@dataclasses.dataclass(frozen=True)
class Sighting:
    """One person as seen and as lifted.

    Attributes:
      pixels: (T, 17, 2) keypoints in pixels, finite inside the segments.
      confidence: (T, 17) 0 where a keypoint was filled in rather than seen.
      poses: (T, 17, 3) root-relative poses in camera axes, millimetres, finite in the segments.
      segments: [start, stop) stretches of frames with poses.
    """

    pixels: np.ndarray
    confidence: np.ndarray
    poses: np.ndarray
    segments: list[tuple[int, int]]


@dataclasses.dataclass(frozen=True)
class Camera:
    """A pinhole camera that stands still, its principal point in the middle of the image.

    Attributes:
      focal_px: focal length in pixels.
      focal_deviation: standard deviation of its logarithm; 0 where it was given.
      focal_source: where it comes from, in words.
      image_size: (width, height) in pixels.
      rotation: (3, 3), turns world axes into camera axes.
      height: millimetres above the ground, so that its place is (0, height, 0).
    """

    focal_px: float
    focal_deviation: float
    focal_source: str
    image_size: tuple[int, int]
    rotation: np.ndarray
    height: float

    @property
    def position(self) -> np.ndarray:
        """(3,) world millimetres."""
        return np.array([0.0, self.height, 0.0])

    @property
    def tilt(self) -> float:
        """Radians by which the camera looks down."""
        return float(np.arcsin(np.clip(-(self.rotation.T @ [0.0, 0.0, 1.0])[1], -1, 1)))

    @property
    def roll(self) -> float:
        """Radians by which the camera is turned about its view, clockwise seen from behind it."""
        up = self.rotation @ np.array([0.0, 1.0, 0.0])
        return float(np.arctan2(-up[0], -up[1]))

    def to_world(self, points: np.ndarray) -> np.ndarray:
        """Turns camera-space millimetres (..., 3) into world millimetres (..., 3)."""
        return points @ self.rotation + self.position

    def to_camera(self, points: np.ndarray) -> np.ndarray:
        """Turns world millimetres (..., 3) into camera-space millimetres (..., 3)."""
        return (points - self.position) @ self.rotation.T

    def project(self, points: np.ndarray) -> np.ndarray:
        """Projects world millimetres (..., 3) to pixels (..., 2)."""
        local = self.to_camera(points)
        centre = np.array(self.image_size) / 2
        return local[..., :2] / local[..., 2:] * self.focal_px + centre


@dataclasses.dataclass(frozen=True)
class Placed:
    """One person in the world.

    Attributes:
      poses: (T, 17, 3) world millimetres; NaN outside the segments.
      planted: (T, 2) bool, whether the left and the right foot stands still on the ground.
      scale: factor by which the root-relative poses were multiplied; 1 where the size was given.
    """

    poses: np.ndarray
    planted: np.ndarray
    scale: float


@dataclasses.dataclass(frozen=True)
class World:
    """Everybody in one room, with the camera that sees them."""

    camera: Camera
    people: tuple[Placed, ...]
    notes: tuple[str, ...] = ()
