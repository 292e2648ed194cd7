"""Other bodies in recorded motion: limb lengths and speed are varied, and the feet stay planted.

Shapes: F frames, J = 17 joints of Human3.6M, world millimetres with y up.
"""

from dataclasses import dataclass

import numpy as np

from posemamba_jax.data.motion.cameras import wrong_ranges
from posemamba_jax.limits import Section, number
from posemamba_jax.skeleton import H36M17

_ANKLES = [H36M17.joints.index("r_ankle"), H36M17.joints.index("l_ankle")]
# Joints whose bones share a factor, so that bodies stay symmetric: hips, thighs, shanks, lower and
# upper trunk, neck, head, shoulders, upper arms, forearms.
_SHARED = ((1, 4), (2, 5), (3, 6), (7,), (8,), (9,), (10,), (11, 14), (12, 15), (13, 16))
# How much higher than the other a foot is, in millimetres, when it carries 27 % of the weight.
_LIFTED_MM = 40.0


@dataclass(frozen=True)
class BodyConfig(Section, path="body"):
    """How much recorded bodies are varied; the defaults leave them as they are.

    Attributes:
      stature: range of the factor that the whole body is scaled by.
      limbs: standard deviation of the factors of single limbs, of which left and right share one.
      speed: range of the factor by which motion is faster than recorded.

    Raises:
      ConfigError: a value is out of its range.
    """

    stature: tuple[float, float] = (1.0, 1.0)
    limbs: float = number(0.0, at_least=0, at_most=0.2)
    speed: tuple[float, float] = (1.0, 1.0)

    def problems(self):
        yield from wrong_ranges(self, "stature", "speed", positive=True)


def draw_factors(rng: np.random.Generator, config: BodyConfig) -> np.ndarray:
    """Draws the factor of each joint's bone to its parent, the root's being that of the stature.

    Returns:
      (J,) factors.
    """
    stature = rng.uniform(*config.stature)
    spread = np.clip(rng.standard_normal(len(_SHARED)), -2, 2)
    factors = np.full(H36M17.num_joints, stature)
    for joints, z in zip(_SHARED, spread, strict=True):
        factors[list(joints)] *= 1 + config.limbs * z
    return factors


def rescale_limbs(points: np.ndarray, factors: np.ndarray) -> np.ndarray:
    """Gives a body other limbs, keeps the direction of every bone, and plants the feet.

    Each bone is multiplied by its factor. The whole body is then moved, frame by frame, so that the
    foot that carries the weight (the lower one) is where it was, times the stature's factor: a foot
    that stood still stands still.

    Args:
      points: (F, J, 3) recorded motion.
      factors: (J,) as `draw_factors` gives them.

    Returns:
      (F, J, 3) motion of the other body.
    """
    result = np.empty_like(points)
    result[:, 0] = factors[0] * points[:, 0]
    for parent, child in H36M17.bones:
        bone = points[:, child] - points[:, parent]
        result[:, child] = result[:, parent] + factors[child] * bone
    missed = factors[0] * points[:, _ANKLES] - result[:, _ANKLES]
    height = points[:, _ANKLES, 1:2]
    share = 1 / (1 + np.exp((height - height[:, ::-1]) / _LIFTED_MM))
    return result + (share * missed).sum(axis=1, keepdims=True)


def sample_frames(points: np.ndarray, at: np.ndarray) -> np.ndarray:
    """Interpolates positions between frames by cubics (Catmull and Rom, 1974).

    Args:
      points: (F, J, 3).
      at: (N,) times in frames, inside 0..F-1.

    Returns:
      (N, J, 3), of the dtype of `points`.
    """
    last = len(points) - 1
    low = np.clip(np.floor(at).astype(int), 0, max(last - 1, 0))
    u = (at - low).astype(points.dtype)[:, None, None]
    p0, p1, p2, p3 = (points[np.clip(low + k, 0, last)] for k in (-1, 0, 1, 2))
    return p1 + 0.5 * u * (
        p2 - p0 + u * (2 * p0 - 5 * p1 + 4 * p2 - p3 + u * (3 * (p1 - p2) + p3 - p0))
    )
