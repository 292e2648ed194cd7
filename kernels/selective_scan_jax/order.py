"""Scan orders: the paths on which a frames x joints grid is read as sequences.

The six named orders are those of the authors' release of PoseMamba. `global` and `limbs` run
frame by frame, joint by joint, and both backwards; `limbs` also adds to every joint, in the two
frame-by-frame directions, the joint that precedes it on a walk along the limbs. The one-way orders
repeat the first two directions instead of reversing them, some with the inner axis reversed.
"""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np

# Slot j holds the joint added to joint j of a Human3.6M-17 skeleton: root to right leg, root to
# left leg, neck to left arm, neck to right arm. It is the release's list, not a parent table.
H36M_LIMB_WALK = (0, 0, 1, 2, 3, 0, 4, 5, 6, 8, 11, 12, 13, 8, 14, 15, 16)

LIMB_GRADIENTS = ("exact", "released")


@dataclasses.dataclass(frozen=True)
class Direction:
    """One path through a grid of frames and joints that visits every position once.

    Attributes:
      frame_by_frame: joints vary fastest (frame by frame) if true, else frames (joint by joint).
      inner_reversed: the fastest axis runs from its last element to its first.
      reverse: the whole path is walked from its end.
    """

    frame_by_frame: bool
    inner_reversed: bool = False
    reverse: bool = False

    def path(self, frames: int, joints: int) -> np.ndarray:
        """Grid position (frame * joints + joint) of each step, shape (frames * joints,)."""
        grid = np.arange(frames * joints, dtype=np.int32).reshape(frames, joints)
        grid = grid if self.frame_by_frame else grid.T
        grid = grid[:, ::-1] if self.inner_reversed else grid
        steps = grid.reshape(-1)
        return steps[::-1] if self.reverse else steps

    def inverse_path(self, frames: int, joints: int) -> np.ndarray:
        """Step at which each grid position is visited, shape (frames * joints,)."""
        return np.argsort(self.path(frames, joints)).astype(np.int32)

    def to_sequence(self, x: jax.Array) -> jax.Array:
        """(batch, frames, joints, ...) to (batch, frames * joints, ...), whatever `reverse` is.

        `reverse` is left to the scan, which walks the sequence backwards without a flipped copy.
        """
        x = x if self.frame_by_frame else jnp.swapaxes(x, 1, 2)
        x = jnp.flip(x, 2) if self.inner_reversed else x
        return x.reshape(x.shape[0], x.shape[1] * x.shape[2], *x.shape[3:])

    def to_grid(self, x: jax.Array, frames: int, joints: int) -> jax.Array:
        """Inverse of `to_sequence`."""
        outer, inner = (frames, joints) if self.frame_by_frame else (joints, frames)
        x = x.reshape(x.shape[0], outer, inner, *x.shape[2:])
        x = jnp.flip(x, 2) if self.inner_reversed else x
        return x if self.frame_by_frame else jnp.swapaxes(x, 1, 2)


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


@dataclasses.dataclass(frozen=True)
class ScanOrder:
    """The directions of a cross scan and the limb term of its frame-by-frame ones. Hashable.

    Attributes:
      directions: one `Direction` per scan direction.
      limb_walk: for each joint the joint added to it in the frame-by-frame directions, or None for
        no limb term. Any tuple of joint indices as long as the skeleton.
      limb_gradient: `exact` differentiates x + x[:, :, limb_walk]; `released` passes the gradient
        to x alone, as the hand-written backward pass of the authors' release does.
    """

    directions: tuple[Direction, ...]
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
        """The order called `name`, one of `SCAN_ORDERS`; only `limbs` uses the limb arguments.

        Raises:
          ValueError: no order has that name, or a limb argument is malformed.
        """
        if name not in _NAMED:
            raise ValueError(f"order: expected one of {', '.join(_NAMED)}, got {name!r}")
        walk = limb_walk if name == "limbs" else None
        return cls(_NAMED[name], walk, limb_gradient)

    def takes_limb_term(self, k: int) -> bool:
        """Whether direction k scans `limb_term(x, order)` instead of x."""
        return self.limb_walk is not None and self.directions[k].frame_by_frame


def limb_term(x: jax.Array, order: ScanOrder) -> jax.Array:
    """x + x[:, :, order.limb_walk], or x itself if the order has no limb walk.

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
