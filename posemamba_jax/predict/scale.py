"""From the model's units to plausible millimetres.

One camera cannot tell a small person nearby from a large one far away, so a metric size has to come
from outside: the person's height, or the length of one bone. The model's unit is half the image's
width at the person's distance, so a person who comes closer grows; the scale follows that.
"""

import numpy as np

from posemamba_jax.errors import UserError
from posemamba_jax.skeleton import H36M17, Skeleton


class ScaleError(UserError, ValueError):
    """No plausible scale can be fitted to what was asked for."""


# Thigh and shank as shares of the body height: Drillis and Contini, "Body segment parameters",
# New York University, 1966.
LEG_SHARE = 0.245 + 0.246
# Who is measured by nothing is taken for an average adult: men are 171 cm and women 159 cm tall in
# the world's mean (NCD Risk Factor Collaboration, "A century of trends in adult human height",
# eLife 2016). Adults spread by 5 to 6 percent about the middle and legs by 3 more about their share
# of the height; together, as the standard deviation of a logarithm:
DEFAULT_HEIGHT_MM = 1650.0
DEFAULT_DEVIATION = 0.065


def bone_lengths(poses: np.ndarray, skeleton: Skeleton = H36M17) -> np.ndarray:
    """Computes the (bones,) median length of each bone over frames, from poses (frames, joints,
    3).
    """
    parents, children = np.array(skeleton.bones).T
    return np.median(np.linalg.norm(poses[:, children] - poses[:, parents], axis=-1), axis=0)


def relative_size(poses: np.ndarray, fps: float) -> np.ndarray:
    """Computes how large the body is in each frame, from the summed length of its bones.

    Bones are rigid, so a change of the sum is a change of distance or an error of the prediction;
    a mean over one second keeps the former.

    Args:
      poses: (frames, 17, 3), finite.

    Returns:
      (frames,) with a median of 1.
    """
    parents, children = np.array(H36M17.bones).T
    total = np.linalg.norm(poses[:, children] - poses[:, parents], axis=-1).sum(1)
    half = max(round(fps / 2), 1)
    sums = np.cumsum(np.concatenate([[0.0], total]))
    starts = np.maximum(np.arange(len(total)) - half, 0)
    stops = np.minimum(np.arange(len(total)) + half + 1, len(total))
    smooth = (sums[stops] - sums[starts]) / (stops - starts)
    return smooth / max(float(np.median(smooth)), 1e-12)


def leg_length(poses: np.ndarray) -> float:
    """Computes the median length of thigh and shank together, the mean of both legs."""
    lengths = dict(zip(H36M17.bones, bone_lengths(poses), strict=True))
    return float(lengths[1, 2] + lengths[2, 3] + lengths[4, 5] + lengths[5, 6]) / 2


def reference_length(poses: np.ndarray, skeleton: Skeleton) -> float:
    """Measures a skeleton by one length: its legs, else its longest chain of bones from the root.

    Args:
      poses: (frames, joints, 3).
      skeleton: what the joints are.
    """
    order = skeleton.find(H36M17.joints)
    if order is not None:
        return leg_length(poses[:, list(order)])
    lengths = dict(zip(skeleton.bones, bone_lengths(poses, skeleton), strict=True))

    def to_root(joint: int) -> float:
        parent = skeleton.parents[joint]
        return 0.0 if parent is None else to_root(parent) + float(lengths[parent, joint])

    return max(to_root(joint) for joint in range(skeleton.num_joints))


def mm_per_unit_from_height(poses: np.ndarray, height_mm: float) -> float:
    """Millimetres per unit such that the legs are as long as a person of this height has them.

    Legs, because their ends are joints in every joint set. Body proportions differ between people
    by a few percent.

    Args:
      poses: (frames, 17, 3) Human3.6M-17. height_mm: body height in millimetres.

    Raises:
      ScaleError: the height is not plausible, or the legs have no length.
    """
    if not 300 <= height_mm <= 2800:
        raise ScaleError(f"a body height of {height_mm:g} mm; expected 300 to 2800")
    return _ratio(LEG_SHARE * height_mm, leg_length(poses), "legs")


def mm_per_unit_from_bone(poses: np.ndarray, bone: str, length_mm: float) -> float:
    """Millimetres per unit such that one bone, such as "l_hip-l_knee", has a given length.

    Raises:
      ScaleError: there is no such bone, or its length is not plausible.
    """
    names = ["-".join(H36M17.joints[j] for j in pair) for pair in H36M17.bones]
    if bone not in names:
        raise ScaleError(f"no bone {bone!r}; known: {', '.join(names)}")
    if not 10 <= length_mm <= 1500:
        raise ScaleError(f"a length of {length_mm:g} mm for {bone}; expected 10 to 1500")
    return _ratio(length_mm, bone_lengths(poses)[names.index(bone)], bone)


def find_mm_per_unit(
    poses: np.ndarray,
    segments: list[tuple[int, int]],
    observed_joints: np.ndarray,
    fps: float,
    *,
    height_mm: float | None = None,
    bone: tuple[str, float] | None = None,
) -> np.ndarray:
    """Millimetres per unit of the model in every frame, from the size of the person.

    Args:
      poses: (frames, 17, 3) in the model's units.
      segments: [start, stop) stretches with poses.
      observed_joints: (frames, 17) bool; lengths are taken where the legs were seen, if they were.
      fps: frames per second.
      height_mm: body height.
      bone: (name, millimetres); taken before the height. With neither, the person is taken for an
        adult of `DEFAULT_HEIGHT_MM`.

    Returns:
      (frames,) float32, NaN outside the segments.

    Raises:
      ScaleError: the size is not plausible, or the bones to be measured have no length.
    """
    scale = np.full(len(poses), np.nan, np.float32)
    for start, stop in segments:
        scale[start:stop] = 1 / np.maximum(relative_size(poses[start:stop], fps), 1e-6)
    legs = [H36M17.joints.index(f"{s}_{j}") for s in "rl" for j in ("hip", "knee", "ankle")]
    lifted = np.isfinite(scale)
    good = lifted & observed_joints[:, legs].all(1)
    chosen = good if good.any() else lifted
    sized = poses[chosen] * scale[chosen, None, None]
    if bone is not None:
        return scale * np.float32(mm_per_unit_from_bone(sized, *bone))
    height_mm = DEFAULT_HEIGHT_MM if height_mm is None else height_mm
    return scale * np.float32(mm_per_unit_from_height(sized, height_mm))


def _ratio(millimetres: float, units: float, what: str) -> float:
    if not units > 1e-6:
        raise ScaleError(f"the predicted {what} have no length, so no scale can be fitted")
    return float(millimetres / units)
