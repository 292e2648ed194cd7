"""Forward kinematics of a joint hierarchy, vectorised over frames."""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Hierarchy:
    """A tree of joints with their rest offsets.

    Attributes:
      names: one per joint.
      parents: index of each joint's parent, -1 for the root; a parent comes before its children.
      offsets: (joints, 3) where a joint sits in its parent's frame at rest, in the file's units.
    """

    names: tuple[str, ...]
    parents: tuple[int, ...]
    offsets: np.ndarray

    def __post_init__(self):
        count = len(self.names)
        if len(self.parents) != count or np.shape(self.offsets) != (count, 3):
            raise ValueError(
                f"a hierarchy of {count} joints needs as many parents and offsets (joints, 3), got "
                f"{len(self.parents)} parents and offsets {np.shape(self.offsets)}"
            )
        for joint, parent in enumerate(self.parents):
            if not (-1 if joint == 0 else 0) <= parent < joint or (joint == 0 and parent != -1):
                raise ValueError(
                    f"joint {self.names[joint]!r} has parent {parent}: the first joint is the root "
                    "(-1) and every other comes after its parent"
                )


def rotation_matrices(angles: np.ndarray, order: str) -> np.ndarray:
    """Makes rotations about the axes in `order`, one after the other in the turning frame.

    Args:
      angles: (..., len(order)) radians, an angle for each letter of `order`.
      order: axes, for example "zxy": R = Rz(a0) Rx(a1) Ry(a2).

    Returns:
      (..., 3, 3) matrices that turn column vectors.
    """
    angles = np.asarray(angles, float)
    cosines, sines = np.cos(angles), np.sin(angles)
    result = None
    for k, axis in enumerate(order.lower()):
        i = "xyz".index(axis)
        j, l = (i + 1) % 3, (i + 2) % 3
        c, s = cosines[..., k, None], sines[..., k, None]
        if result is None:
            result = np.zeros((*angles.shape[:-1], 3, 3))
            result[..., i, i] = 1
            result[..., j, j] = result[..., l, l] = c[..., 0]
            result[..., j, l], result[..., l, j] = -s[..., 0], s[..., 0]
        else:
            # Multiplying by an elementary rotation only mixes two columns.
            column_j, column_l = result[..., j].copy(), result[..., l].copy()
            result[..., j] = column_j * c + column_l * s
            result[..., l] = column_l * c - column_j * s
    if result is None:
        return np.broadcast_to(np.eye(3), (*angles.shape[:-1], 3, 3)).copy()
    return result


def forward_kinematics(
    parents: tuple[int, ...],
    offsets: np.ndarray,
    rotations: np.ndarray,
    root_position: np.ndarray,
) -> np.ndarray:
    """Computes joint positions from local rotations.

    The frame of joint j is its parent's frame times its own rotation, and j sits at its parent's
    position plus its offset turned by the parent's frame.

    Args:
      parents: index of each joint's parent; -1, once, for the root, which comes first.
      offsets: (joints, 3), or (frames, joints, 3) for offsets that change. The root's is not used.
      rotations: (frames, joints, 3, 3) local rotations.
      root_position: (frames, 3).

    Returns:
      (frames, joints, 3) in the units of the offsets.
    """
    frames, joints = rotations.shape[:2]
    offsets = np.broadcast_to(offsets, (frames, joints, 3))
    has_children = set(parents)
    positions = np.empty((frames, joints, 3))
    frame_of = [None] * joints
    for joint, parent in enumerate(parents):
        if parent < 0:
            positions[:, joint] = root_position
            frame_of[joint] = rotations[:, joint]
            continue
        turned = frame_of[parent] @ offsets[:, joint, :, None]
        positions[:, joint] = positions[:, parent] + turned[..., 0]
        if joint in has_children:
            frame_of[joint] = frame_of[parent] @ rotations[:, joint]
    return positions
