"""Which feet stand still, told from the image.

The camera stands still, so a foot that is planted is at rest in the image. That needs no depth and
no camera, and so comes first; the place of the ground follows from it.
"""

import numpy as np

from posemamba_jax.predict.world.contract import Sighting
from posemamba_jax.skeleton import H36M17

ANKLES = (H36M17.joints.index("l_ankle"), H36M17.joints.index("r_ankle"))
# Speeds of an ankle in leg lengths per second, seen in the image: slower than the first begins a
# stance, faster than the second ends it. A swinging foot passes 3 leg lengths per second.
_SLOW, _FAST = 0.3, 0.6
# Speed is taken over this many seconds; a stance that is shorter than the second is none.
_SPAN_SECONDS = 0.1
_SHORTEST_SECONDS = 0.12


def find_planted(sighting: Sighting, fps: float) -> np.ndarray:
    """Tells whether the left and the right foot stands still, (T, 2) bool.

    An ankle counts if it was seen, moves slowly across the image, and is not held up: its foot is
    no higher above the other one, in the lifted pose, than a third of the leg.
    """
    planted = np.zeros((len(sighting.pixels), 2), bool)
    for start, stop in sighting.segments:
        part = slice(start, stop)
        poses, pixels = sighting.poses[part], sighting.pixels[part]
        leg_mm = _leg(poses)
        leg_px = leg_mm * _pixels_per_mm(poses, pixels)
        ankles = pixels[:, ANKLES]
        speed = _speed(ankles, fps) / np.maximum(leg_px, 1e-6)[:, None]
        height = -poses[:, ANKLES, 1]
        low = height - height.min(1, keepdims=True) < 0.33 * leg_mm
        seen = sighting.confidence[part][:, ANKLES] > 0
        for foot in range(2):
            usable = low[:, foot] & seen[:, foot]
            planted[part, foot] = _with_hysteresis(speed[:, foot], usable)
            _drop_short(planted[part, foot], fps)
    return planted


def find_stances(planted: np.ndarray, segments) -> list[tuple[int, int, int]]:
    """Finds (foot, start, stop) of every stretch in which a foot stays planted, within one
    segment.
    """
    stances = []
    for start, stop in segments:
        for foot in range(2):
            for a, b in _runs(planted[start:stop, foot]):
                stances.append((foot, start + a, start + b))
    return stances


def _leg(poses: np.ndarray) -> float:
    """Returns the median length of thigh and shank."""
    total = 0.0
    for a, b in ((1, 2), (2, 3), (4, 5), (5, 6)):
        total += float(np.median(np.linalg.norm(poses[:, a] - poses[:, b], axis=-1))) / 2
    return total


def _pixels_per_mm(poses: np.ndarray, pixels: np.ndarray) -> np.ndarray:
    """Computes the (T,) scale of the person in the image: the spread of keypoints over that of the
    pose.
    """
    flat = poses[..., :2]
    spread = [np.sqrt(((a - a.mean(1, keepdims=True)) ** 2).sum((1, 2))) for a in (pixels, flat)]
    return spread[0] / np.maximum(spread[1], 1e-6)


def _speed(points: np.ndarray, fps: float) -> np.ndarray:
    """Computes (T, feet) pixels per second over a short span; the median of three spans' ends is
    taken.
    """
    half = max(1, round(_SPAN_SECONDS * fps / 2))
    calm = _median3(points)
    index = np.arange(len(points))
    ahead, behind = np.minimum(index + half, len(points) - 1), np.maximum(index - half, 0)
    seconds = np.maximum(ahead - behind, 1) / fps
    return np.linalg.norm(calm[ahead] - calm[behind], axis=-1) / seconds[:, None]


def _median3(points: np.ndarray) -> np.ndarray:
    padded = np.concatenate([points[:1], points, points[-1:]])
    return np.median(np.stack([padded[:-2], padded[1:-1], padded[2:]]), axis=0)


def _with_hysteresis(speed: np.ndarray, usable: np.ndarray) -> np.ndarray:
    """Stretches below the upper bound that somewhere fall below the lower one."""
    kept = np.zeros(len(speed), bool)
    for a, b in _runs((speed < _FAST) & usable):
        kept[a:b] = (speed[a:b] < _SLOW).any()
    return kept


def _drop_short(planted: np.ndarray, fps: float) -> None:
    for a, b in _runs(planted):
        if b - a < max(2, _SHORTEST_SECONDS * fps):
            planted[a:b] = False


def _runs(mask: np.ndarray) -> list[tuple[int, int]]:
    edges = np.flatnonzero(np.diff(np.concatenate([[0], mask.astype(int), [0]])))
    return [(int(a), int(b)) for a, b in edges.reshape(-1, 2)]
