"""From the model's units to plausible millimetres.

One camera cannot tell a small person nearby from a large one far away, so a metric size has to come
from outside: the person's height, or the length of one bone.
"""

import numpy as np

from posemamba_jax.skeleton import H36M17, Skeleton

# Thigh and shank as shares of the body height: Drillis and Contini, "Body segment parameters",
# New York University, 1966.
LEG_SHARE = 0.245 + 0.246


def bone_lengths(poses: np.ndarray, skeleton: Skeleton = H36M17) -> np.ndarray:
    """(bones,) median length of each bone over frames, from poses (frames, joints, 3)."""
    parents, children = np.array(skeleton.bones).T
    return np.median(np.linalg.norm(poses[:, children] - poses[:, parents], axis=-1), axis=0)


def mm_per_unit_from_height(poses: np.ndarray, height_mm: float) -> float:
    """Millimetres per unit such that the legs are as long as a person of this height has them.

    Legs, because their ends are joints in every joint set; the mean over both sides of thigh and
    shank is compared. Body proportions differ between people by a few percent.

    Args:
      poses: (frames, 17, 3) Human3.6M-17. height_mm: body height in millimetres.

    Raises:
      ValueError: the height is not plausible, or the legs have no length.
    """
    if not 300 <= height_mm <= 2800:
        raise ValueError(f"a body height of {height_mm:g} mm; expected 300 to 2800")
    lengths = dict(zip(H36M17.bones, bone_lengths(poses), strict=True))
    leg = (lengths[1, 2] + lengths[2, 3] + lengths[4, 5] + lengths[5, 6]) / 2
    return _ratio(LEG_SHARE * height_mm, leg, "legs")


def mm_per_unit_from_bone(poses: np.ndarray, bone: str, length_mm: float) -> float:
    """Millimetres per unit such that one bone, such as "l_hip-l_knee", has a given length.

    Raises:
      ValueError: there is no such bone, or its length is not plausible.
    """
    names = ["-".join(H36M17.joints[j] for j in pair) for pair in H36M17.bones]
    if bone not in names:
        raise ValueError(f"no bone {bone!r}; known: {', '.join(names)}")
    if not 10 <= length_mm <= 1500:
        raise ValueError(f"a length of {length_mm:g} mm for {bone}; expected 10 to 1500")
    return _ratio(length_mm, bone_lengths(poses)[names.index(bone)], bone)


def _ratio(millimetres: float, units: float, what: str) -> float:
    if not units > 1e-6:
        raise ValueError(f"the predicted {what} have no length, so no scale can be fitted")
    return float(millimetres / units)
