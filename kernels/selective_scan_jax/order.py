"""Scan orders: the paths on which a frames x joints grid is read as sequences.

The six named orders are those of the authors' release of PoseMamba. `global` and `limbs` run
frame by frame, joint by joint, and both backwards; `limbs` also adds to every joint, in the two
frame-by-frame directions, the joint that precedes it on a walk along the limbs. The one-way orders
repeat the first two directions instead of reversing them, some with the inner axis reversed.

A direction is one path through the grid that visits every position once: a `Direction`, which a
start and two strides describe, or any `Permutation`. An order has as many as it likes.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

# Slot j holds the joint added to joint j of a Human3.6M-17 skeleton: root to right leg, root to
# left leg, neck to left arm, neck to right arm. It is the release's list, not a parent table.
H36M_LIMB_WALK = (0, 0, 1, 2, 3, 0, 4, 5, 6, 8, 11, 12, 13, 8, 14, 15, 16)

LIMB_GRADIENTS = ("exact", "released")


class Strides(NamedTuple):
    """Where the steps of a path are: l is at start + (l % inner) * inner_stride + (l // inner) *
    outer_stride.

    Attributes:
      start: grid position (frame * joints + joint) of step 0.
      inner: steps along the axis that varies fastest.
      inner_stride: from one position to the next along that axis.
      outer_stride: the same along the other axis.
    """

    start: int
    inner: int
    inner_stride: int
    outer_stride: int


@dataclasses.dataclass(frozen=True)
class Direction:
    """One path through a grid of frames and joints along its axes.

    Every implementation's kernels read such a path from the grid as it lies.

    Attributes:
      frame_by_frame: joints vary fastest (frame by frame) if true, else frames (joint by joint).
      inner_reversed: the fastest axis runs from its last element to its first.
      reverse: the whole path is walked from its end.
    """

    frame_by_frame: bool
    inner_reversed: bool = False
    reverse: bool = False

    def strides(self, frames: int, joints: int) -> Strides:
        """Describes the path by a start and two strides; the one place where they are computed."""
        outer, inner = (frames, joints) if self.frame_by_frame else (joints, frames)
        inner_stride, outer_stride = (1, joints) if self.frame_by_frame else (joints, 1)
        start = 0
        if self.inner_reversed:
            start, inner_stride = (inner - 1) * inner_stride, -inner_stride
        if self.reverse:
            start += (inner - 1) * inner_stride + (outer - 1) * outer_stride
            inner_stride, outer_stride = -inner_stride, -outer_stride
        return Strides(start, inner, inner_stride, outer_stride)

    def path(self, frames: int, joints: int) -> np.ndarray:
        """Returns the grid position (frame * joints + joint) of each step, shape (frames *
        joints,).
        """
        start, inner, inner_stride, outer_stride = self.strides(frames, joints)
        step = np.arange(frames * joints, dtype=np.int32)
        return start + step % inner * inner_stride + step // inner * outer_stride

    def inverse_path(self, frames: int, joints: int) -> np.ndarray:
        """Returns the step at which each grid position is visited, shape (frames * joints,)."""
        return np.argsort(self.path(frames, joints)).astype(np.int32)

    def finishes_frames(self, joints: int) -> bool:
        """Tells whether the path visits all joints of a frame before those of another frame."""
        return self.frame_by_frame

    def to_sequence(self, x: jax.Array) -> jax.Array:
        """Rearranges (batch, frames, joints, ...) to (batch, frames * joints, ...), whatever
        `reverse` is.

        `reverse` is left to the scan, which walks the sequence backwards without a flipped copy.
        """
        x = x if self.frame_by_frame else jnp.swapaxes(x, 1, 2)
        x = jnp.flip(x, 2) if self.inner_reversed else x
        return x.reshape(x.shape[0], x.shape[1] * x.shape[2], *x.shape[3:])

    def to_grid(self, x: jax.Array, frames: int, joints: int) -> jax.Array:
        """Undoes `to_sequence`."""
        outer, inner = (frames, joints) if self.frame_by_frame else (joints, frames)
        x = x.reshape(x.shape[0], outer, inner, *x.shape[2:])
        x = jnp.flip(x, 2) if self.inner_reversed else x
        return x if self.frame_by_frame else jnp.swapaxes(x, 1, 2)


@dataclasses.dataclass(frozen=True)
class Permutation:
    """Any path through a grid of frames and joints, given step by step.

    Implementations whose kernels follow strides gather the grid along such a path first (see
    `selective_scan_jax.composed`).

    Attributes:
      positions: grid position (frame * joints + joint) of each step, each position once. An order
        of one frame, or of a few, is repeated for the frames after those, so the grid's number of
        frames has to be a multiple of the pattern's.
      reverse: the whole path is walked from its end.

    Raises:
      ValueError: the positions are no permutation.
    """

    positions: tuple[int, ...]
    reverse: bool = False

    def __post_init__(self):
        positions = tuple(int(position) for position in self.positions)
        object.__setattr__(self, "positions", positions)
        first = next((i for i, p in enumerate(sorted(positions)) if i != p), None)
        if first is not None or not positions:
            raise ValueError(
                f"positions: expected each of 0 to {max(len(positions) - 1, 0)} once, one per "
                f"step, got {_shorten(positions)}"
                + ("" if first is None else f", in which {first} is missing")
            )

    def check_grid(self, frames: int, joints: int) -> None:
        """Raises a ValueError unless the pattern covers whole frames and fits their number."""
        length = len(self.positions)
        if length % joints or frames % (length // joints):
            raise ValueError(
                f"a permutation of {length} positions does not cover {frames} frames of {joints} "
                f"joints; it needs {joints} positions, or a multiple of that by a divisor of "
                f"{frames}"
            )

    def path(self, frames: int, joints: int) -> np.ndarray:
        """Returns the grid position (frame * joints + joint) of each step, shape (frames *
        joints,).
        """
        self.check_grid(frames, joints)
        pattern = np.array(self.positions, np.int32)
        first = np.arange(0, frames * joints, pattern.size, dtype=np.int32)
        steps = (first[:, None] + pattern).reshape(-1)
        return steps[::-1] if self.reverse else steps

    inverse_path = Direction.inverse_path

    def finishes_frames(self, joints: int) -> bool:
        """Tells whether the path visits all joints of a frame before those of another frame."""
        if len(self.positions) % joints:
            return False
        frames = np.array(self.positions).reshape(-1, joints) // joints
        return bool((frames == frames[:, :1]).all())

    def _forward(self) -> Permutation:
        return dataclasses.replace(self, reverse=False) if self.reverse else self

    def to_sequence(self, x: jax.Array) -> jax.Array:
        """Rearranges (batch, frames, joints, ...) to (batch, frames * joints, ...), whatever
        `reverse` is.
        """
        path = self._forward().path(*x.shape[1:3])
        x = x.reshape(x.shape[0], x.shape[1] * x.shape[2], *x.shape[3:])
        return _take(x, path)

    def to_grid(self, x: jax.Array, frames: int, joints: int) -> jax.Array:
        """Undoes `to_sequence`."""
        x = _take(x, self._forward().inverse_path(frames, joints))
        return x.reshape(x.shape[0], frames, joints, *x.shape[2:])


def _take(x, path):
    """Computes x[:, path]; no position comes twice, so the gradient is not a sum in any order."""
    return x.at[:, path].get(mode="promise_in_bounds", unique_indices=True)


def _shorten(numbers: Sequence[int], limit: int = 24) -> str:
    shown = ", ".join(map(str, numbers[:limit]))
    return f"({shown}{', ...' if len(numbers) > limit else ''})"


def _one_way(frames: Direction, joints: Direction) -> tuple[Direction, ...]:
    return (frames, joints, frames, joints)


def _both_ways(frames: Direction, joints: Direction) -> tuple[Direction, ...]:
    return (
        frames,
        joints,
        dataclasses.replace(frames, reverse=True),
        dataclasses.replace(joints, reverse=True),
    )


_FRAMES, _JOINTS = Direction(True), Direction(False)
_FRAMES_INNER, _JOINTS_INNER = Direction(True, True), Direction(False, True)

_NAMED = {
    "global": _both_ways(_FRAMES, _JOINTS),
    "limbs": _both_ways(_FRAMES, _JOINTS),
    "fs_ft": _one_way(_FRAMES, _JOINTS),
    "bs_ft": _one_way(_FRAMES_INNER, _JOINTS),
    "fs_bt": _one_way(_FRAMES, _JOINTS_INNER),
    "bs_bt": _one_way(_FRAMES_INNER, _JOINTS_INNER),
}

SCAN_ORDERS = tuple(_NAMED)

# Direction names, as `direction_named` reads them.
_AXES = {"frames": True, "joints": False}


def direction_named(
    name: str, permutations: Sequence[Sequence[int]] = ()
) -> Direction | Permutation:
    """Finds the direction that a short name stands for.

    `frames` runs frame by frame, `joints` joint by joint; `-inner` after it reverses the fastest
    axis, `-reverse` walks the whole path from its end: `joints-inner-reverse`. `permutation0` is
    the first of `permutations`, and may be reversed too.

    Args:
      name: as above.
      permutations: positions of each `Permutation` that names may refer to.

    Raises:
      ValueError: no direction has that name, or a permutation is none.
    """
    base, *flags = name.split("-")
    reverse, inner = flags[-1:] == ["reverse"], flags[:1] == ["inner"]
    known = flags == ["inner"] * inner + ["reverse"] * reverse
    if known and base in _AXES:
        return Direction(_AXES[base], inner, reverse)
    numbers = {f"permutation{i}": positions for i, positions in enumerate(permutations)}
    if known and base in numbers and not inner:
        return Permutation(tuple(numbers[base]), reverse)
    names = ", ".join([*_AXES, *numbers])
    raise ValueError(
        f"expected one of {names}, with -inner (of frames and joints) and -reverse after it as "
        f"needed, got {name!r}"
    )


@dataclasses.dataclass(frozen=True)
class ScanOrder:
    """The directions of a cross scan and the limb term of its frame-by-frame ones. Hashable.

    Attributes:
      directions: one `Direction` or `Permutation` each; a direction may come more than once.
      limb_walk: for each joint the joint added to it in the frame-by-frame directions, or None for
        no limb term. Any tuple of joint indices as long as the skeleton.
      limb_gradient: `exact` differentiates x + x[:, :, limb_walk]; `released` passes the gradient
        to x alone, as the hand-written backward pass of the authors' release does.
    """

    directions: tuple[Direction | Permutation, ...]
    limb_walk: tuple[int, ...] | None = None
    limb_gradient: str = "exact"

    def __post_init__(self):
        object.__setattr__(self, "directions", tuple(self.directions))
        if not self.directions:
            raise ValueError("directions: a scan order needs at least one direction")
        if self.limb_gradient not in LIMB_GRADIENTS:
            raise ValueError(
                f"limb_gradient: expected one of {', '.join(LIMB_GRADIENTS)}, "
                f"got {self.limb_gradient!r}"
            )
        if self.limb_walk is not None:
            walk = tuple(int(joint) for joint in self.limb_walk)
            if not walk or min(walk) < 0 or max(walk) >= len(walk):
                raise ValueError(
                    "limb_walk: expected one joint index per joint, each from 0 to the number of "
                    f"joints - 1, got {walk}"
                )
            object.__setattr__(self, "limb_walk", walk)

    @classmethod
    def named(
        cls,
        name: str,
        *,
        limb_walk: tuple[int, ...] = H36M_LIMB_WALK,
        limb_gradient: str = "exact",
    ) -> ScanOrder:
        """Makes the order called `name`, one of `SCAN_ORDERS`; only `limbs` uses the limb
        arguments.

        Raises:
          ValueError: no order has that name, or a limb argument is malformed.
        """
        if name not in _NAMED:
            raise ValueError(f"order: expected one of {', '.join(_NAMED)}, got {name!r}")
        walk = limb_walk if name == "limbs" else None
        return cls(_NAMED[name], walk, limb_gradient)

    def takes_limb_term(self, k: int) -> bool:
        """Tells whether direction k scans `limb_term(x, order)` instead of x."""
        walk = self.limb_walk
        return walk is not None and self.directions[k].finishes_frames(len(walk))

    def subset(self, ks: Sequence[int]) -> ScanOrder:
        """Makes the order of some of the directions."""
        return dataclasses.replace(self, directions=tuple(self.directions[k] for k in ks))

    def check_grid(self, frames: int, joints: int) -> None:
        """Refuses a grid that the limb walk or a permutation does not fit.

        Raises:
          ValueError: with what does not fit.
        """
        if self.limb_walk is not None and len(self.limb_walk) != joints:
            raise ValueError(
                f"the order's limb walk is for {len(self.limb_walk)} joints, x has {joints}"
            )
        for k, direction in enumerate(self.directions):
            if isinstance(direction, Permutation):
                try:
                    direction.check_grid(frames, joints)
                except ValueError as error:
                    raise ValueError(f"direction {k} of the order: {error}") from None


def limb_term(x: jax.Array, order: ScanOrder) -> jax.Array:
    """Computes x + x[:, :, order.limb_walk], or x itself if the order has no limb walk.

    Args:
      x: (batch, frames, joints, channels).
      order: its `limb_gradient` selects the derivative (see `ScanOrder`).

    Returns:
      An array like x.

    Raises:
      ValueError: the walk is not as long as x has joints.
    """
    if order.limb_walk is None:
        return x
    if x.shape[2] != len(order.limb_walk):
        raise ValueError(
            f"x: the order's limb walk is for {len(order.limb_walk)} joints, "
            f"x has {x.shape[2]} (shape {x.shape})"
        )
    return _limb_term(x, order.limb_walk, order.limb_gradient)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2))
def _limb_term(x, walk, gradient):
    return x + x[:, :, np.asarray(walk)]


def _limb_term_fwd(x, walk, gradient):
    return _limb_term(x, walk, gradient), None


def _limb_term_bwd(walk, gradient, _, grad):
    if gradient == "released":
        return (grad,)
    # The transpose of the gather as gathers, one per slot that names the same joint: a scatter-add
    # would sum in no fixed order on a GPU.
    slots = [[s for s, joint in enumerate(walk) if joint == j] for j in range(len(walk))]
    total = grad
    for r in range(max(map(len, slots))):
        index = np.array([s[r] if r < len(s) else 0 for s in slots])
        present = np.array([r < len(s) for s in slots])[:, None]
        total = total + jnp.where(present, grad[:, :, index], 0)
    return (total,)


_limb_term.defvjp(_limb_term_fwd, _limb_term_bwd)
