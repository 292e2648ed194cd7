"""Skeletons: joints, bones, left and right, and the walk along the limbs that the model scans."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np


@dataclasses.dataclass(frozen=True)
class Skeleton:
    """A fixed set of joints and how they hang together.

    Attributes:
      name: what error messages call it.
      joints: one name per joint, all different; the position in this tuple is the joint's index.
      bones: (parent, child) joint indices, every joint but the root the child of one bone.
      left, right: indices of mirrored joints, paired by position: left[i] mirrors right[i].
      limb_walk: for each joint slot, the joint whose features the local scan adds to it. It
        follows the limbs from root to end and is not a parent table: slots belong to the walk.
      root: the joint that targets are relative to.

    Raises:
      ValueError: a name or a bone's child is there twice, bones lead in a circle, an index is out
        of range, or left, right or the walk have the wrong length.
    """

    name: str
    joints: tuple[str, ...]
    bones: tuple[tuple[int, int], ...]
    left: tuple[int, ...]
    right: tuple[int, ...]
    limb_walk: tuple[int, ...]
    root: int = 0

    def __post_init__(self):
        tables = {
            "bones": [joint for bone in self.bones for joint in bone],
            "left": self.left,
            "right": self.right,
            "limb_walk": self.limb_walk,
            "root": [self.root],
        }
        for field, indices in tables.items():
            wrong = [i for i in indices if not 0 <= i < self.num_joints]
            if wrong:
                raise ValueError(
                    f"skeleton {self.name!r}: {field} names joint {wrong[0]}, "
                    f"but the joints are 0..{self.num_joints - 1}"
                )
        children = [child for _, child in self.bones]
        for what, names in (("joint", self.joints), ("child of a bone", children)):
            twice = [name for i, name in enumerate(names) if name in names[:i]]
            if twice:
                raise ValueError(f"skeleton {self.name!r}: {what} {twice[0]!r} is there twice")
        if self.root in children:
            raise ValueError(
                f"skeleton {self.name!r}: root {self.joints[self.root]!r} is the child of a bone"
            )
        above, climbing = self.parents, set(range(self.num_joints))
        for _ in self.joints:
            climbing = {above[joint] for joint in climbing} - {None}
        if climbing:
            names = ", ".join(repr(self.joints[joint]) for joint in sorted(climbing))
            raise ValueError(f"skeleton {self.name!r}: bones lead in a circle through {names}")
        if len(self.left) != len(self.right) or set(self.left) & set(self.right):
            raise ValueError(f"skeleton {self.name!r}: left and right must pair different joints")
        if len(self.limb_walk) != self.num_joints:
            raise ValueError(
                f"skeleton {self.name!r}: limb_walk has {len(self.limb_walk)} slots, "
                f"expected one for each of the {self.num_joints} joints"
            )

    @property
    def num_joints(self) -> int:
        return len(self.joints)

    def average_flipped(self, predict: Callable[[Any], Any], poses_2d):
        """Averages the prediction of poses with the flipped-back one of the flipped poses.

        Args:
          predict: maps (..., joints, 2) to (..., joints, 3).
          poses_2d: (..., joints, 2) NumPy or JAX array.

        Returns:
          (..., joints, 3), of the type that predict returns.
        """
        return (predict(poses_2d) + self.flip(predict(self.flip(poses_2d)))) / 2

    @property
    def parents(self) -> tuple[int | None, ...]:
        """Index of each joint's parent; None for the root and joints that no bone leads to."""
        parent_of = {child: parent for parent, child in self.bones}
        return tuple(parent_of.get(joint) for joint in range(self.num_joints))

    @property
    def mirror(self) -> np.ndarray:
        """(joints,) index of each joint's mirror image; joints on the midline are their own."""
        mirror = np.arange(self.num_joints)
        mirror[list(self.left)] = self.right
        mirror[list(self.right)] = self.left
        return mirror

    def flip(self, poses):
        """Mirrors poses: x changes sign, then left and right joints trade places.

        Args:
          poses: (..., joints, channels) NumPy or JAX array whose first channel is x; further
            channels (y, depth, confidence) move with their joint unchanged. x must be measured from
            the image's or the root's vertical midline, as normalised coordinates are.

        Returns:
          An array of the same kind, shape and dtype.

        Raises:
          ValueError: the joints axis does not fit this skeleton.
        """
        if poses.ndim < 2 or poses.shape[-2] != self.num_joints:
            raise ValueError(
                f"poses have shape {tuple(poses.shape)}; skeleton {self.name!r} needs "
                f"(..., {self.num_joints}, channels)"
            )
        sign = np.ones(poses.shape[-1], poses.dtype)
        sign[0] = -1
        return poses[..., self.mirror, :] * sign

    def first_difference(self, other: "Skeleton") -> str | None:
        """Compares joint by joint what makes poses of two skeletons mean different things.

        That is each joint's name, parent and mirror image, and which joint is the root. The
        skeleton's own name, the order of the bones and the limb walk (which belongs to a model) do
        not count.

        Returns:
          The first joint that differs and how, in words; None if there is none.
        """
        for joint in range(max(self.num_joints, other.num_joints)):
            if self._identity(joint) != other._identity(joint):
                mine, theirs = (skeleton._describe(joint) for skeleton in (self, other))
                return f"joint {joint} is {mine} in {self.name} and {theirs} in {other.name}"
        return None

    def _identity(self, joint: int) -> tuple | None:
        if joint >= self.num_joints:
            return None
        place = self.parents[joint], int(self.mirror[joint]), joint == self.root
        return self.joints[joint], *place

    def _describe(self, joint: int) -> str:
        if joint >= self.num_joints:
            return "missing"
        words = [repr(self.joints[joint])]
        parent, mirror = self.parents[joint], self.mirror[joint]
        if joint == self.root:
            words.append("(the root)")
        if parent is not None:
            words.append(f"(parent {self.joints[parent]!r})")
        if mirror != joint:
            words.append(f"(mirror image {self.joints[mirror]!r})")
        return " ".join(words)

    def find(self, names: Sequence[str]) -> tuple[int, ...] | None:
        """Finds joints by name, in that order; None if one of them does not exist."""
        index = {name: joint for joint, name in enumerate(self.joints)}
        found = tuple(index.get(name) for name in names)
        return None if None in found else found


H36M17 = Skeleton(
    name="Human3.6M-17",
    joints=(
        "root",
        "r_hip",
        "r_knee",
        "r_ankle",
        "l_hip",
        "l_knee",
        "l_ankle",
        "belly",
        "neck",
        "nose",
        "head",
        "l_shoulder",
        "l_elbow",
        "l_wrist",
        "r_shoulder",
        "r_elbow",
        "r_wrist",
    ),
    bones=(
        (0, 1),
        (1, 2),
        (2, 3),
        (0, 4),
        (4, 5),
        (5, 6),
        (0, 7),
        (7, 8),
        (8, 9),
        (9, 10),
        (8, 11),
        (11, 12),
        (12, 13),
        (8, 14),
        (14, 15),
        (15, 16),
    ),
    left=(4, 5, 6, 11, 12, 13),
    right=(1, 2, 3, 14, 15, 16),
    limb_walk=(0, 0, 1, 2, 3, 0, 4, 5, 6, 8, 11, 12, 13, 8, 14, 15, 16),
)
