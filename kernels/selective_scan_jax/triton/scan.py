"""The scan as Triton kernels on NVIDIA GPUs from Ampere on, called through jax-triton.

Both operators are one pair of kernels (triton_kernels.py, where the layouts are described) behind
a custom gradient. The forward pass keeps its arguments and the states before every chunk; the
backward pass computes a chunk's states again. Sums over channels, batch elements, directions and
parts of the states are taken over buffers of partial sums, so results are the same bit for bit from
run to run. See docs/triton.md.
"""

from __future__ import annotations

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np

from selective_scan_jax import tuning
from selective_scan_jax.operands import CrossScanOperands, ScanOperands
from selective_scan_jax.order import ScanOrder, limb_term
from selective_scan_jax.target import interpreting
from selective_scan_jax.triton.call import launch, unavailable_reason

__all__ = ["Config", "cross_scan", "selective_scan", "unavailable_reason"]

MOST_STATES = 16  # of a program: their vectors have to fit into the registers


@dataclasses.dataclass(frozen=True)
class Config:
    """How the scan is cut into programs.

    Attributes:
      chunk: steps between the states that the forward pass keeps.
      warps, channels, states, depth: of a program of the forward kernel: warps, channels a thread,
        states, directions walked one after the other.
      unroll: steps in the body of the forward kernel's loop.
      backward_warps, backward_channels, backward_states, backward_depth: of the backward kernel.
    """

    chunk: int = 64
    warps: int = 1
    channels: int = 1
    states: int = MOST_STATES
    depth: int = 1
    unroll: int = 2
    backward_warps: int = 1
    backward_channels: int = 1
    backward_states: int = MOST_STATES
    backward_depth: int = 1

    def candidates(self, shape: dict[str, int]) -> list[Config]:
        """Configurations worth measuring at a shape, one field after the other changed."""
        choices = {
            "chunk": (16, 32, 64, 128),
            "warps": (1, 2, 4),
            "channels": (1, 2, 4),
            "states": (4, 8, 16),
            "unroll": (1, 2, 4),
            "depth": (1, 2, 4) if shape["rank"] else (1,),
        }
        changed = []
        for name, values in choices.items():
            for prefix in ("",) if name in ("chunk", "unroll") else ("", "backward_"):
                changed += [dataclasses.replace(self, **{prefix + name: v}) for v in values]
        return [config for config in dict.fromkeys(changed) if config != self]


def heuristic(shape: dict[str, int]) -> Config:
    """What is likely good on a GPU with about 500 schedulers, each wanting a warp or more."""
    warps = shape["batch"] * shape["directions"] * shape["channels"] / 32
    many = warps >= 1024
    states = min(shape["state"], MOST_STATES)
    # Parts of the states repeat what is done once a step, and each has a y of its own.
    parts = 4 if warps <= 64 else 2 if warps <= 256 else 1
    states = max(states // parts, min(states, 4))
    return Config(
        chunk=32,
        channels=2 if many else 1,
        states=states,
        depth=2 if many else 1,
        unroll=1 if many else 2,
        # With the sums for a step projection as well, two channels do not fit into the registers.
        backward_channels=2 if many and not shape["rank"] else 1,
        backward_states=states,
        backward_depth=2 if many else 1,
    )


@dataclasses.dataclass(frozen=True)
class _Scan:
    """The static side of a call: sizes, options and the paths of its directions."""

    batch: int
    length: int
    channels: int
    directions: int
    state: int
    rank: int  # 0 for a selective scan
    softplus: bool
    config: Config
    order: ScanOrder | None = None
    reverse: bool = False
    frames: int = 0
    joints: int = 1

    def block_of_states(self, wanted: int) -> int:
        """The largest divisor of the number of states that is at most `wanted`."""
        return next(n for n in range(min(wanted, self.state), 0, -1) if self.state % n == 0)

    def slots(self, depth: int) -> list[list[int]]:
        """The directions of each slot, `depth` of them, all with the limb term or all without."""
        everything = list(range(self.directions))
        if self.order is None or depth == 1 or self.directions % depth:
            return [[k] for k in everything]
        limbs = [k for k in everything if self.order.takes_limb_term(k)]
        others = [k for k in everything if k not in limbs]
        if len(limbs) % depth or len(others) % depth:
            return [[k] for k in everything]
        return [x[i : i + depth] for x in (limbs, others) for i in range(0, len(x), depth)]

    def path(self, k: int) -> list[int]:
        """A row of the kernels' `paths`."""
        if self.order is None:
            start, stride = (self.length - 1, -1) if self.reverse else (0, 1)
            return [k, start, stride, self.length, 0, 0]
        start, inner, stride, outer_stride = self.order.directions[k].strides(
            self.frames, self.joints
        )
        jump = outer_stride - (inner - 1) * stride
        return [k, start, stride, inner, jump, int(self.order.takes_limb_term(k))]

    def tables(self, depth: int) -> tuple[np.ndarray, np.ndarray]:
        """`paths` and `walk` of the kernels."""
        paths = [self.path(k) for slot in self.slots(depth) for k in slot]
        walk = self.order.limb_walk if self.order and self.order.limb_walk else (0,)
        offsets = [other - joint for joint, other in enumerate(walk)]
        return np.array(paths, np.int32), np.array(offsets, np.int32)

    def lanes(self, warps: int, per_thread: int) -> int:
        """Threads of a program; a power of two that covers the channels in the interpreter."""
        if interpreting():
            blocks = -(-self.channels // per_thread)
            return min(32 * warps, 1 << (blocks - 1).bit_length())
        return 32 * warps

    def constants(self, depth: int, block_n: int, lanes: int, per_thread: int) -> dict[str, int]:
        """The kernels' compile-time arguments that do not depend on what is absent."""
        return {
            "LENGTH": self.length,
            "CHANNELS": self.channels,
            "DIRECTIONS": self.directions,
            "STATES": self.state,
            "RANK": self.rank,
            "JOINTS": self.joints,
            "CROSS": self.order is not None,
            "SOFTPLUS": self.softplus,
            "HAS_LIMBS": self.order is not None and self.order.limb_walk is not None,
            "SLOTS": len(self.slots(depth)),
            "DEPTH": self.directions // len(self.slots(depth)),
            "CHUNK": self.config.chunk,
            "BLOCK_N": block_n,
            "LANES": lanes,
            "PER": per_thread,
            "STATE_WIDTH": math.gcd(block_n, 4),
            "RANK_WIDTH": math.gcd(self.rank, 4),
        }

    def sequence(self, parts: int, slots: int) -> tuple[int, ...]:
        """Shape of y or of the gradient by u, as the kernels write it."""
        if self.order is None:
            return (parts, self.batch, self.length, self.directions * self.channels)
        return (parts * slots, self.batch, self.frames, self.joints, self.channels)


def _float32(*shape: int) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, jnp.float32)


def _fill(arrays):
    """The arrays with an array that is there in place of each that is not."""
    return [arrays[0] if a is None else a for a in arrays]


def _forward(scan: _Scan, save: bool, u, steps, B, C, weight, bias, A, D, initial):
    """y by slot and part, the last state and the states before the chunks (empty unless `save`)."""
    config = scan.config
    block_n = scan.block_of_states(config.states)
    parts, slots = scan.state // block_n, scan.slots(config.depth)
    lanes = scan.lanes(config.warps, config.channels)
    chunks = -(-scan.length // config.chunk)
    constants = scan.constants(config.depth, block_n, lanes, config.channels) | {
        "HAS_BIAS": bias is not None,
        "HAS_D": D is not None,
        "HAS_INITIAL": initial is not None,
        "SAVE": save,
        "UNROLL": config.unroll,
    }
    per_direction = (scan.batch, scan.directions)
    outputs = [
        _float32(*scan.sequence(parts, len(slots))),
        _float32(*per_direction, scan.channels, scan.state),
        _float32(*per_direction, chunks, scan.state, scan.channels) if save else _float32(1),
    ]
    grid = (-(-scan.channels // (lanes * config.channels)), len(slots) * parts, scan.batch)
    inputs = _fill((u, steps, B, C, weight, bias, A, D, initial))
    tables = scan.tables(config.depth)
    return launch("scan_forward", [*inputs, *tables], outputs, grid, constants, config.warps)


def _backward(scan: _Scan, u, steps, B, C, weight, bias, A, D, boundaries, grad_y, grad_last):
    """The kernel's outputs, partial sums and all; the last one is its scratch."""
    config = scan.config
    block_n = scan.block_of_states(config.backward_states)
    parts, slots = scan.state // block_n, scan.slots(config.backward_depth)
    per_thread = config.backward_channels
    lanes = scan.lanes(config.backward_warps, per_thread)
    blocks = -(-scan.channels // (lanes * per_thread))
    constants = scan.constants(config.backward_depth, block_n, lanes, per_thread) | {
        "HAS_BIAS": bias is not None,
        "HAS_D": D is not None,
        "HAS_GRAD_LAST": grad_last is not None,
        "SUMS_PAD": 1 << (2 * block_n - 1).bit_length(),
        "RANK_PAD": 1 << max(scan.rank - 1, 0).bit_length(),
    }
    rows = (scan.batch, scan.length, scan.directions)
    per_channel = (scan.batch, scan.directions, scan.channels)
    sequence = _float32(*scan.sequence(parts, len(slots)))
    programs = blocks * len(slots) * parts * scan.batch
    outputs = [
        sequence,
        _float32(*rows, parts * blocks, scan.rank) if scan.rank else sequence,
        _float32(*rows, blocks, 2, scan.state),
        _float32(parts, *per_channel, max(scan.rank, 1)),
        _float32(parts, *per_channel),
        _float32(*per_channel, scan.state),
        _float32(*per_channel),
        _float32(*per_channel, scan.state),
        _float32(programs, config.chunk, 3 + block_n, lanes * per_thread),
    ]
    grid = (blocks, len(slots) * parts, scan.batch)
    inputs = _fill((u, steps, B, C, weight, bias, A, D))
    inputs += [*scan.tables(config.backward_depth), boundaries, grad_y]
    inputs += [boundaries if grad_last is None else grad_last]
    return launch("scan_backward", inputs, outputs, grid, constants, config.backward_warps)


def _config(**shape: int) -> Config:
    return tuning.choose("triton_scan", heuristic(shape), shape)


# ---- selective scan


def selective_scan(operands: ScanOperands, *, delta_softplus: bool, reverse: bool):
    """See `selective_scan_jax.selective_scan`; returns (y, last_state)."""
    u, delta, A, B, C, D, delta_bias, z, initial_state = operands
    batch, length, channels = u.shape
    groups, state = B.shape[2:]
    shape = {"batch": batch, "length": length, "channels": channels // groups}
    shape |= {"directions": groups, "state": state, "rank": 0}
    scan = _Scan(**shape, softplus=delta_softplus, reverse=reverse, config=_config(**shape))
    y, last_state = _selective_scan(u, delta, A, B, C, D, delta_bias, initial_state, scan)
    if z is not None:
        y = y * jax.nn.silu(z.astype(jnp.float32))
    return y.astype(u.dtype), last_state


@functools.partial(jax.custom_vjp, nondiff_argnums=(8,))
def _selective_scan(u, delta, A, B, C, D, bias, initial, scan):
    return _selective_forward(scan, False, u, delta, A, B, C, D, bias, initial)[:2]


def _selective_forward(scan, save, u, delta, A, B, C, D, bias, initial):
    y, last, boundaries = _forward(scan, save, u, delta, B, C, None, bias, A, D, initial)
    return y.sum(0), last.reshape(scan.batch, -1, scan.state), boundaries


def _selective_scan_fwd(u, delta, A, B, C, D, bias, initial, scan):
    arrays = (u, delta, A, B, C, D, bias, initial)
    y, last, boundaries = _selective_forward(scan, True, *arrays)
    return (y, last), (arrays, boundaries)


def _selective_scan_bwd(scan, saved, grads):
    (u, delta, A, B, C, D, bias, initial), boundaries = saved
    by_u, by_delta, by_C_B, _, by_bias, by_A, by_D, by_initial, _ = _backward(
        scan, u, delta, B, C, None, bias, A, D, boundaries, *grads
    )
    by_C_B = by_C_B.sum(3)
    gradients = (
        by_u.sum(0),
        by_delta.sum(0),
        by_A.sum(0),
        by_C_B[:, :, :, 1],
        by_C_B[:, :, :, 0],
        by_D.sum(0),
        by_bias.sum((0, 1)),
        by_initial,
    )
    return tuple(
        None if a is None else g.reshape(a.shape).astype(a.dtype)
        for a, g in zip((u, delta, A, B, C, D, bias, initial), gradients, strict=True)
    )


_selective_scan.defvjp(_selective_scan_fwd, _selective_scan_bwd)


# ---- cross scan


def cross_scan(operands: CrossScanOperands, *, order: ScanOrder):
    """See `selective_scan_jax.cross_scan`."""
    x, dt, B, C, dt_weight, dt_bias, A, D = operands
    batch, frames, joints, channels = x.shape
    directions, rank = dt.shape[3:]
    shape = {"batch": batch, "length": frames * joints, "channels": channels}
    shape |= {"directions": directions, "state": B.shape[-1], "rank": rank}
    scan = _Scan(
        **shape, softplus=True, order=order, frames=frames, joints=joints, config=_config(**shape)
    )
    return _cross_scan(x, dt, B, C, dt_weight, dt_bias, A, D, scan)


@functools.partial(jax.custom_vjp, nondiff_argnums=(8,))
def _cross_scan(x, dt, B, C, weight, bias, A, D, scan):
    return _forward(scan, False, x, dt, B, C, weight, bias, A, D, None)[0].sum(0)


def _cross_scan_fwd(x, dt, B, C, weight, bias, A, D, scan):
    y, _, boundaries = _forward(scan, True, x, dt, B, C, weight, bias, A, D, None)
    return y.sum(0), ((x, dt, B, C, weight, bias, A, D), boundaries)


def _cross_scan_bwd(scan, saved, grad_y):
    arrays, boundaries = saved
    x, dt, B, C, weight, bias, A, D = arrays
    by_u, by_dt, by_C_B, by_weight, by_bias, by_A, by_D, _, _ = _backward(
        scan, x, dt, B, C, weight, bias, A, D, boundaries, grad_y, None
    )
    by_C_B = by_C_B.sum(3)
    gradients = (
        _by_x(scan, by_u),
        by_dt.sum(3),
        by_C_B[:, :, :, 1],
        by_C_B[:, :, :, 0],
        by_weight.sum((0, 1)),
        by_bias.sum((0, 1)),
        by_A.sum(0),
        by_D.sum(0),
    )
    return tuple(g.reshape(a.shape).astype(a.dtype) for a, g in zip(arrays, gradients, strict=True))


_cross_scan.defvjp(_cross_scan_fwd, _cross_scan_bwd)


def _by_x(scan: _Scan, by_u):
    """The gradient by x from that by the u of each slot, (parts * slots, b, f, j, e)."""
    slots = scan.slots(scan.config.backward_depth)
    limbs = np.array([scan.order.takes_limb_term(slot[0]) for slot in slots])
    by_u = by_u.reshape(-1, len(slots), *by_u.shape[1:])
    total = by_u[:, ~limbs].sum((0, 1))
    if limbs.any():
        by_term = by_u[:, limbs].sum((0, 1))
        total += jax.vjp(lambda x: limb_term(x, scan.order), by_term)[1](by_term)[0]
    return total
