"""What a keypoint detector makes of a person: other joint definitions, and errors that last.

Shapes: F frames, J = 17 joints of Human3.6M.
"""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from posemamba_jax.data.motion.cameras import wrong_ranges
from posemamba_jax.limits import Section, number

# Of joints that were not found, and interpolated.
LEAST_CONFIDENCE = 0.05
DEFINITIONS = ("mocap", "hourglass", "coco", "blazepose")

_LEFT, _RIGHT = [4, 5, 6, 11, 12, 13], [1, 2, 3, 14, 15, 16]
_LIMBS = ([2, 3], [5, 6], [12, 13], [15, 16])
_LEGS, _ARMS = ([1, 2, 3], [4, 5, 6]), ([14, 15, 16], [11, 12, 13])
# Error of each joint relative to a typical one: BlazePose heavy on four views of a real video, left
# and right taken together (benchmarks/real_video.py errors).
_DIFFICULTY = np.array(
    [0.75, 0.8, 1.25, 1.1, 0.8, 1.25, 1.1, 0.4, 0.5, 1.2, 1.2, 0.7, 1.05, 1.6, 0.7, 1.05, 1.6]
)
# Pairs (parent, child) whose child is shifted along the bone, as knees and elbows are.
_ALONG = ((1, 2), (2, 3), (4, 5), (5, 6), (11, 12), (12, 13), (14, 15), (15, 16))


@dataclass(frozen=True)
class KeypointConfig(Section, path="keypoints"):
    """Errors of a detector, drawn anew for every clip; lengths are shares of the person's extent.

    Sizes and persistence are around those of BlazePose heavy on a real video: a standard deviation
    of 0.013 and a correlation of 0.85 after a thirtieth of a second, of 0.52 after four, measured
    by `benchmarks/real_video.py errors`.

    Attributes:
      sigma: range of a clip's typical error in x and in y.
      persistence: range of the correlation of the slow part of the error from one thirtieth of a
        second to the next.
      fresh: share of the error's variance that is new in every frame.
      hidden_side: share of clips in which the side of the body that is further away is hidden, and
        in which its joints err more.
      hidden_limb: share of clips in which a limb is hidden for a while.
      hidden_factor: range of the factor by which hidden joints err more.
      missing: share of (joint, frame) that no keypoint was found for; they are interpolated.
      swap: share of clips in which left and right of the legs, the arms or both trade places for a
        while.
      definitions: joint definitions that clips are drawn from; see `redefine`.
      offset_mm: standard deviation, in millimetres, of each joint's constant offset from where the
        definition has it.

    Raises:
      ConfigError: a value is out of its range.
    """

    sigma: tuple[float, float] = (0.006, 0.02)
    persistence: tuple[float, float] = (0.75, 0.92)
    fresh: float = number(0.06, at_least=0, at_most=1)
    hidden_side: float = number(0.4, at_least=0, at_most=1)
    hidden_limb: float = number(0.2, at_least=0, at_most=1)
    hidden_factor: tuple[float, float] = (1.5, 4.0)
    missing: float = number(0.01, at_least=0, at_most=0.9)
    swap: float = number(0.03, at_least=0, at_most=1)
    definitions: tuple[str, ...] = DEFINITIONS
    offset_mm: float = number(12.0, at_least=0, at_most=200)

    def problems(self):
        yield from wrong_ranges(self, "sigma", "persistence", "hidden_factor", positive=True)
        unknown = [name for name in self.definitions if name not in DEFINITIONS]
        if unknown or not self.definitions:
            known = ", ".join(DEFINITIONS)
            yield "definitions", f"has {unknown or 'nothing'}; known are {known}"


class Axes(NamedTuple):
    """Unit vectors (F, 3) of a body part: to its left, up along it, and forward."""

    left: np.ndarray
    up: np.ndarray
    forward: np.ndarray

    def to_world(self, offset: np.ndarray) -> np.ndarray:
        """Turns the offset (3,) of left, up and forward into world axes, (F, 3)."""
        return offset[0] * self.left + offset[1] * self.up + offset[2] * self.forward


def find_axes(left: np.ndarray, up: np.ndarray) -> Axes:
    """Axes along `up` (F, 3), with `left` (F, 3) made perpendicular to it."""
    up = _unit(up)
    left = _unit(left - (left * up).sum(-1, keepdims=True) * up)
    return Axes(left, up, np.cross(left, up))


def redefine(
    points: np.ndarray, definition: str, offset_mm: float, rng: np.random.Generator
) -> np.ndarray:
    """Moves joints from where motion capture has them to where a detector puts its keypoints.

    - "mocap": as they are.
    - "hourglass": Human3.6M's joints as a network trained on images marks them: the nose on the
      face, the rest as they are.
    - "coco", "blazepose": the nose on the face, the middle of the eyes for the head, the middle of
      the shoulders for the neck and of hips and shoulders for the belly; as
      `posemamba_jax.data.joint_sets` converts the detections of such networks.

    All but the first give every joint a constant offset too, drawn at random, in the frame of the
    trunk or along the limb. Which way the face points is not recorded; it is drawn near the chest's
    direction.

    Args:
      points: (F, J, 3) world millimetres.
      definition: one of `DEFINITIONS`.
      offset_mm: standard deviation of the offsets.
      rng: draws them.

    Returns:
      (F, J, 3).
    """
    if definition == "mocap":
        return points
    stature = np.linalg.norm(points[:, 2] - points[:, 3], axis=-1).mean() / 430.0  # of the shank
    offset = offset_mm * stature
    trunk = find_axes(points[:, 11] - points[:, 14], points[:, 8] - points[:, 0])
    pelvis = find_axes(points[:, 4] - points[:, 1], points[:, 7] - points[:, 0])
    result = points.copy()

    both = rng.normal(0, offset, (2, 3))
    apart = rng.normal(0, offset / 2, (4, 3))
    for axes, shared, joints in ((pelvis, both[0], (4, 1)), (trunk, both[1], (11, 14))):
        for sign, joint in zip((1, -1), joints, strict=True):
            own = apart[(1, 4, 11, 14).index(joint)]
            result[:, joint] += axes.to_world(shared * (sign, 1, 1) + own)
    # Shifts along the bones, and a little across, are the same for left and right but for a part.
    for parent, child in _ALONG:
        bone = points[:, child] - points[:, parent]
        result[:, child] += rng.normal(0, 0.025) * bone + trunk.to_world(
            rng.normal(0, offset / 2, 3)
        )

    yaw = rng.normal(0, 0.25)
    sideways = np.cos(yaw) * trunk.left + np.sin(yaw) * trunk.forward
    head = find_axes(sideways, points[:, 10] - points[:, 9])
    face = stature * np.array([0.0, rng.normal(-5, 15), rng.normal(100, 15)])
    result[:, 9] = points[:, 9] + head.to_world(face)
    if definition == "hourglass":
        result[:, [0, 7, 8, 10]] += trunk.to_world(rng.normal(0, offset / 2, 3))[:, None]
        return result
    eyes = stature * np.array([0.0, rng.normal(35, 10), rng.normal(-25, 8)])
    result[:, 10] = result[:, 9] + head.to_world(eyes)
    result[:, 0] = (result[:, 1] + result[:, 4]) / 2
    result[:, 8] = (result[:, 11] + result[:, 14]) / 2
    result[:, 7] = (result[:, 0] + result[:, 8]) / 2
    return result


def imitate_detector(
    poses_2d: np.ndarray,
    depth: np.ndarray,
    outside: np.ndarray,
    config: KeypointConfig,
    rng: np.random.Generator,
    frame_seconds: float = 1 / 30,
) -> np.ndarray:
    """Gives exact keypoints the errors and confidences of a detector.

    Args:
      poses_2d: (F, J, 2) exact keypoints.
      depth: (F, J) distance from the camera, in any unit; says which side is further away.
      outside: (F, J) bool, joints outside of the image.
      config: sizes and rates of the errors.
      rng: draws them.
      frame_seconds: time between frames, which errors persist over.

    Returns:
      (F, J, 3) x, y, and a confidence in (0, 1] that falls with the error to be expected. A joint
      that was missed has its neighbours in time interpolated and `LEAST_CONFIDENCE`.
    """
    frames, joints, _ = poses_2d.shape
    extent = float((poses_2d.max(axis=1) - poses_2d.min(axis=1)).max(axis=-1).mean())
    sigma = np.exp(rng.uniform(*np.log(config.sigma)))
    size = sigma * np.tile(_DIFFICULTY * np.exp(rng.normal(0, 0.25, joints)), (frames, 1))

    if rng.random() < config.hidden_side:
        further = _LEFT if depth[:, _LEFT].mean() > depth[:, _RIGHT].mean() else _RIGHT
        size[:, further] *= rng.uniform(*config.hidden_factor)
    if rng.random() < config.hidden_limb:
        start, stop = _draw_stretch(rng, frames)
        limb = _LIMBS[rng.integers(len(_LIMBS))]
        size[start:stop, limb] *= 1.5 * rng.uniform(*config.hidden_factor)
    size = np.where(outside, np.maximum(4 * size, 0.03), size)

    keep = rng.uniform(*config.persistence) ** (30 * frame_seconds)
    slow = _draw_persisting(rng, (frames, joints, 2), keep)
    fresh = rng.standard_normal((frames, joints, 2))
    error = np.sqrt(1 - config.fresh) * slow + np.sqrt(config.fresh) * fresh
    found = poses_2d + extent * size[..., None] * error

    if rng.random() < config.swap:
        start, stop = _draw_stretch(rng, frames)
        pairs = (_LEGS, _ARMS)[rng.integers(2) :][: rng.integers(1, 3)]
        for left, right in pairs:
            part = found[start:stop]
            part[:, [*left, *right]] = part[:, [*right, *left]]

    confidence = np.exp(-size / rng.uniform(0.03, 0.09))
    confidence *= 1 - 0.1 * rng.random((frames, joints))
    if config.missing:
        # Misses come in stretches of some frames, and more of them where the error is large.
        risk = config.missing * size / size.mean() / 4
        starts = rng.random((frames, joints)) < risk
        lost = starts.copy()
        for delay in range(1, 4):
            lost[delay:] |= starts[:-delay]
        found, confidence = _interpolate(found, lost), np.where(lost, LEAST_CONFIDENCE, confidence)
    return np.concatenate([found, np.clip(confidence, LEAST_CONFIDENCE, 1)[..., None]], axis=-1)


def _unit(vectors: np.ndarray) -> np.ndarray:
    return vectors / np.maximum(np.linalg.norm(vectors, axis=-1, keepdims=True), 1e-6)


def _draw_stretch(rng: np.random.Generator, frames: int) -> tuple[int, int]:
    """Draws a stretch of a clip, its first frame and its end, anywhere and of any length."""
    start, stop = np.sort(rng.integers(0, frames + 1, 2))
    return int(start), int(max(stop, start + 1))


def _draw_persisting(rng: np.random.Generator, shape: tuple, keep: float) -> np.ndarray:
    """Draws noise of variance 1 that keeps a share of itself from frame to frame."""
    noise = rng.standard_normal(shape)
    new = np.sqrt(1 - keep**2)
    for frame in range(1, len(noise)):
        noise[frame] = keep * noise[frame - 1] + new * noise[frame]
    return noise


def _interpolate(found: np.ndarray, lost: np.ndarray) -> np.ndarray:
    """Replaces lost joints by what lies between the frames before and after."""
    frames = np.arange(len(found))
    result = found.copy()
    for joint in np.flatnonzero(lost.any(axis=0)):
        seen = ~lost[:, joint]
        if seen.any():
            for axis in range(2):
                result[:, joint, axis] = np.interp(frames, frames[seen], found[seen, joint, axis])
    return result
