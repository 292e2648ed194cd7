"""Pinhole cameras around a person, and a stand-in for the 2D detector that watches through them.

World coordinates are millimetres with y up. Camera coordinates are millimetres with x to the right
of the image, y down and z along the view, so a larger z is further away.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from posemamba_jax.limits import Section, number


@dataclass(frozen=True)
class CameraConfig(Section, path="camera"):
    """Where cameras stand and what they are; each pair is a range to draw from.

    The defaults are near the cameras of Human3.6M.

    Attributes:
      width, height: pixels.
      focal: focal length in pixels.
      distance: metres to the middle of the motion; grows where people would leave the image.
      elevation: metres above the lowest point of the motion.

    Raises:
      ValueError: a value is out of its range.
    """

    width: int = number(1000, at_least=1, at_most=10**6)
    height: int = number(1000, at_least=1, at_most=10**6)
    focal: tuple[float, float] = (1100.0, 1200.0)
    distance: tuple[float, float] = (4.0, 6.0)
    elevation: tuple[float, float] = (0.8, 1.9)

    def problems(self):
        yield from wrong_ranges(self, "focal", "distance", positive=True)
        yield from wrong_ranges(self, "elevation")


@dataclass(frozen=True)
class DetectorConfig(Section, path="detector"):
    """Errors of the imitated 2D detector, as shares of the person's extent in the image.

    Attributes:
      sigma: standard deviation of a typical joint's error in x and in y; part of it drifts over a
        few frames, part is new in each.
      outlier_rate: share of frames in which a joint is badly misplaced.
      outlier_sigma: standard deviation of these errors.
      swap_rate: share of frames in which the two legs, and in which the two arms, trade places.

    Raises:
      ValueError: a value is out of its range.
    """

    sigma: float = number(0.01, at_least=0, below=1)
    outlier_rate: float = number(0.004, at_least=0, below=1)
    outlier_sigma: float = number(0.06, at_least=0, below=1)
    swap_rate: float = number(0.002, at_least=0, below=1)


class Camera(NamedTuple):
    """`rotation` (3, 3) turns world into camera axes; `position` (3,) is in world millimetres."""

    rotation: np.ndarray
    position: np.ndarray
    focal: float
    width: int
    height: int


def wrong_ranges(
    section: Section, *names: str, positive: bool = False
) -> Iterator[tuple[str, str]]:
    """Yields the fields that are not (low, high), both finite, with low <= high."""
    kind, lowest = ("positive numbers", 0) if positive else ("numbers", -1e9)
    for name in names:
        value = getattr(section, name)
        if len(value) != 2 or not lowest < value[0] <= value[1] < 1e9:
            yield name, f"must be two {kind} [low, high] with low <= high, got {list(value)}"


def place_camera(rng: np.random.Generator, points: np.ndarray, config: CameraConfig) -> Camera:
    """Places a camera that sees all of `points`.

    Args:
      rng: draws azimuth, distance, elevation, focal length and aim.
      points: (frames, joints, 3) world millimetres.
      config: ranges to draw from. The distance grows beyond its range where that is what it takes
        to keep every point inside the image (with a margin) and in front of the camera.
    """
    points = points.reshape(-1, 3)
    low, high = points.min(axis=0), points.max(axis=0)
    azimuth = rng.uniform(0, 2 * np.pi)
    focal = rng.uniform(*config.focal)
    distance = 1000 * rng.uniform(*config.distance)
    lift = low[1] + 1000 * rng.uniform(*config.elevation)
    aim = (low + high) / 2 + rng.uniform(-1, 1, 3) * (100, 60, 100)

    # The distance that brings a point to the image's edge is known in closed form for a given
    # pitch, and the pitch that keeps the elevation follows from the distance: take turns.
    margin = 0.92
    for _ in range(4):
        pitch = np.arctan2(lift - aim[1], distance)
        back = np.array(
            [np.cos(pitch) * np.sin(azimuth), np.sin(pitch), np.cos(pitch) * np.cos(azimuth)]
        )
        x = np.cross((0.0, 1.0, 0.0), back)
        x /= np.linalg.norm(x)
        rotation = np.stack([x, np.cross(x, back), -back])
        local = (points - aim) @ rotation.T
        reach = np.maximum(
            np.abs(local[:, 0]) / (config.width / 2), np.abs(local[:, 1]) / (config.height / 2)
        )
        needed = max((focal * reach / margin - local[:, 2]).max(), 1000 - local[:, 2].min())
        if needed <= distance:
            break
        distance = float(needed)
    return Camera(rotation, aim + distance * back, focal, config.width, config.height)


def to_camera(camera: Camera, points: np.ndarray) -> np.ndarray:
    """Turns world millimetres (..., 3) into camera-space millimetres (..., 3)."""
    return (points - camera.position) @ camera.rotation.T


def project(camera: Camera, points: np.ndarray) -> np.ndarray:
    """Projects camera-space millimetres (..., 3) to normalised image coordinates (..., 2).

    Pixels p become p * 2 / w - [1, h / w]; with the principal point in the middle of the image
    that is (x, y) / z scaled by 2 * focal / w.
    """
    return points[..., :2] / points[..., 2:] * (2 * camera.focal / camera.width)


def observe(
    camera: Camera,
    points: np.ndarray,
    *,
    input_2d: str,
    detector: DetectorConfig,
    rng: np.random.Generator,
) -> dict[str, np.ndarray]:
    """Makes what a clip source holds of a recording seen by one camera.

    Args:
      camera: a pinhole camera.
      points: (frames, joints, 3) world millimetres, joint 0 being the root.
      input_2d: "ground_truth" for the exact projection, "detected" for it with `detector`'s errors.
      detector: errors of the imitated detector.
      rng: draws those errors.

    Returns:
      poses_2d (frames, joints, 3), poses_3d (frames, joints, 3), poses_3d_mm (frames, joints, 3)
      relative to the root and in camera axes, and mm_per_unit (frames,), all float32. A unit of
      frame t is half the image's width at the root's depth, so that
      (poses_3d - root) * mm_per_unit is poses_3d_mm.

    Raises:
      ValueError: for another `input_2d`.
    """
    check_input_2d(input_2d)
    local = to_camera(camera, points)
    root = local[:, :1]
    mm_per_unit = root[..., 2:] * (camera.width / (2 * camera.focal))
    relative = local - root
    offset = np.concatenate([root[..., :2], np.zeros_like(root[..., :1])], axis=-1)
    poses_3d = (relative + offset) / mm_per_unit
    poses_2d = project(camera, local)
    if input_2d == "detected":
        poses_2d = detect(poses_2d, detector, rng)
    else:
        poses_2d = np.concatenate([poses_2d, np.ones_like(poses_2d[..., :1])], axis=-1)
    return {
        "poses_2d": poses_2d.astype(np.float32),
        "poses_3d": poses_3d.astype(np.float32),
        "poses_3d_mm": relative.astype(np.float32),
        "mm_per_unit": mm_per_unit[:, 0, 0].astype(np.float32),
    }


def check_input_2d(input_2d: str) -> None:
    if input_2d not in ("detected", "ground_truth"):
        raise ValueError(f"input_2d must be 'detected' or 'ground_truth', got {input_2d!r}")


# How much harder than a typical joint each is to place, in the order of Human3.6M-17: the ends of
# limbs move fast, and hips and trunk show no mark.
_DIFFICULTY = np.array(
    [1.0, 1.1, 0.9, 1.1, 1.1, 0.9, 1.1, 1.1, 0.8, 0.7, 0.8, 0.9, 1.1, 1.3, 0.9, 1.1, 1.3]
)
# Legs and arms that a detector confuses: knees and ankles, elbows and wrists.
_CONFUSED = ((5, 6), (2, 3)), ((12, 13), (15, 16))
_DRIFT_FRAMES = 7
_BURST_FRAMES = 5


def detect(poses_2d: np.ndarray, config: DetectorConfig, rng: np.random.Generator) -> np.ndarray:
    """Gives exact 2D poses the errors and confidences of a keypoint detector.

    Args:
      poses_2d: (frames, 17, 2), joints in the order of Human3.6M.
      config: sizes and rates of the errors.
      rng: draws them.

    Returns:
      (frames, 17, 3): x, y, and a confidence in (0, 1] that falls as the error grows but, like a
      detector's, does not tell it exactly.
    """
    frames, joints, _ = poses_2d.shape
    extent = float((poses_2d.max(axis=1) - poses_2d.min(axis=1)).max(axis=-1).mean())

    fresh = rng.standard_normal((frames, joints, 2))
    drift = rng.standard_normal((frames + _DRIFT_FRAMES - 1, joints, 2))
    drift = _window_sum(drift, _DRIFT_FRAMES) / np.sqrt(_DRIFT_FRAMES)
    error = (config.sigma * extent) * _DIFFICULTY[:, None] * (0.6 * fresh + 0.8 * drift)

    starts = _burst_starts(rng, frames, joints, config.outlier_rate)
    if starts.any():
        jumps = rng.normal(0, config.outlier_sigma * extent, (*starts.shape, 2))
        error += _window_sum(starts[..., None] * jumps, _BURST_FRAMES)

    found = poses_2d + error
    swapped = _window_sum(_burst_starts(rng, frames, 2, config.swap_rate), _BURST_FRAMES) > 0.5
    for column, (left, right) in enumerate(_CONFUSED):
        rows = np.flatnonzero(swapped[:, column])[:, None]
        found[rows, left], found[rows, right] = found[rows, right], found[rows, left]

    wrong = np.linalg.norm(found - poses_2d, axis=-1) / extent
    confidence = 0.95 * np.exp(-((wrong / 0.05) ** 2) / 2)
    confidence *= 1 - 0.15 * rng.random((frames, joints))
    return np.concatenate([found, np.clip(confidence, 0.05, 1.0)[..., None]], axis=-1)


def _window_sum(values: np.ndarray, width: int) -> np.ndarray:
    """Sums `width` neighbours along axis 0, which gets width - 1 shorter."""
    return np.lib.stride_tricks.sliding_window_view(values, width, axis=0).sum(axis=-1)


def _burst_starts(rng: np.random.Generator, frames: int, columns: int, rate: float) -> np.ndarray:
    """Marks where bursts begin, so that about a share `rate` of frames lies in one."""
    return (rng.random((frames + _BURST_FRAMES - 1, columns)) < rate / _BURST_FRAMES).astype(float)
