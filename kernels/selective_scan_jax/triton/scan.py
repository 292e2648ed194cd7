"""The scan as Triton kernels on NVIDIA GPUs from Ampere on, called through jax-triton.

Both operators are the same kernels (layouts are described in forward.py and backward.py) behind a
custom gradient. The forward pass keeps its arguments and the states before every chunk; the
backward pass computes a chunk's states again. Sums over channels, batch elements, directions and
parts of the states are taken over buffers of partial sums, so results are the same bit for bit from
run to run. See docs/triton.md.
"""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np

from selective_scan_jax import tuning
from selective_scan_jax.operands import CrossScanOperands, ScanOperands
from selective_scan_jax.order import ScanOrder, Strides, limb_term
from selective_scan_jax.target import interpreting
from selective_scan_jax.triton.call import launch, unavailable_reason
from selective_scan_jax.triton.heuristic import Config, heuristic
from selective_scan_jax.triton.layout import Layout, path_of

__all__ = ["cross_scan", "selective_scan", "unavailable_reason"]


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

    def layout(self, backward: bool, save: bool, bias, D, initial, grad_last) -> Layout:
        """Returns how the forward or the backward kernels cut up the work; absent arrays are
        None.
        """
        config = self.config
        prefix = "backward_" if backward else ""
        warps, per_thread, states, group, segments = (
            getattr(config, prefix + name)
            for name in ("warps", "channels", "states", "group", "segments")
        )
        chunk = config.whole_chunk
        per_segment = -(-self.length // (segments * chunk)) * chunk
        return Layout(
            length=self.length,
            channels=self.channels,
            directions=self.directions,
            states=self.state,
            rank=self.rank,
            softplus=self.softplus,
            bias=bias is not None,
            skip=D is not None,
            initial=initial is not None,
            grad_last=grad_last is not None,
            save=save,
            chunk=chunk,
            group=group,
            block_n=next(n for n in range(min(states, self.state), 0, -1) if self.state % n == 0),
            segments=-(-self.length // per_segment),
            segment=per_segment,
            lanes=self.lanes(warps, per_thread),
            per_thread=per_thread,
        )

    def lanes(self, warps: int, per_thread: int) -> int:
        """Threads of a program; a power of two that covers the channels in the interpreter."""
        if interpreting():
            blocks = -(-self.channels // per_thread)
            return min(32 * warps, 1 << (blocks - 1).bit_length())
        return 32 * warps

    def takes_limbs(self, k: int) -> bool:
        return self.order is not None and self.order.takes_limb_term(k)

    def paths(self) -> np.ndarray:
        """Returns `paths` of the kernels, int32."""
        if self.order is None:
            start, stride = (self.length - 1, -1) if self.reverse else (0, 1)
            strides = [Strides(start, self.length, stride, 0)] * self.directions
        else:
            strides = [d.strides(self.frames, self.joints) for d in self.order.directions]
        paths = [path_of(row, self.takes_limbs(k)) for k, row in enumerate(strides)]
        return np.array(paths, np.int32)

    def sequence(self, parts: int) -> tuple[int, ...]:
        """Returns the shape of y or of the gradient by u, as the kernels write it."""
        if self.order is None:
            return (self.batch, parts, self.length, self.directions * self.channels)
        return (self.batch, parts, self.directions, self.frames, self.joints, self.channels)


def _float32(*shape: int) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, jnp.float32)


def _fill(arrays):
    """Replaces each absent array by the first one, which is there."""
    return [arrays[0] if a is None else a for a in arrays]


def _forward(scan: _Scan, save: bool, u, u_limbs, delta, rows, weight, bias, A, D, initial):
    """Returns y by part and direction, the last states and the states before the chunks (if
    `save`).
    """
    layout = scan.layout(False, save, bias, D, initial, None)
    states = (scan.batch, scan.directions, scan.channels, scan.state)
    inputs = _fill((u, u_limbs, delta, rows, weight, bias, A, D, initial))
    paths = scan.paths()
    ends = sums = inputs[0]
    if layout.segments > 1:
        # The bias and so on are what every kernel is given; first states, D and C are not used.
        ends, sums = launch(
            "scan_ends", [*inputs[:7], paths], _ends(scan, layout), scan.batch, layout
        )
    chunks = (scan.batch, scan.directions, layout.chunks, scan.state, scan.channels)
    outputs = [
        _float32(*scan.sequence(layout.parts)),
        _float32(*states),
        _float32(*chunks) if save else _float32(1),
    ]
    inputs = [*inputs, paths, ends, sums]
    return launch("scan_forward", inputs, outputs, scan.batch, layout)


def _ends(scan: _Scan, layout: Layout) -> list[jax.ShapeDtypeStruct]:
    """Returns states or adjoints at the ends of segments, and the sums of the segments' step
    sizes.
    """
    segments = (scan.batch, scan.directions, layout.segments)
    return [_float32(*segments, scan.state, scan.channels), _float32(*segments, scan.channels)]


def _backward(
    scan: _Scan, u, u_limbs, delta, rows, weight, bias, A, D, boundaries, grad_y, grad_last
):
    """Returns the gradients by u, delta, rows, weight, bias, A, D and the first state.

    Partial sums are added up but those of the gradient by u.
    """
    layout = scan.layout(True, True, bias, D, None, grad_last)
    inputs = _fill((u, u_limbs, delta, rows, weight, bias, A, D))
    paths = scan.paths()
    ends = sums = boundaries
    if layout.segments > 1:
        ends, sums = launch(
            "scan_adjoint_ends",
            [*inputs[:7], paths, grad_y],
            _ends(scan, layout),
            scan.batch,
            layout,
        )
    sequence = _float32(*scan.sequence(layout.parts))
    segments = (scan.batch, layout.segments)
    per_channel = (scan.directions, scan.channels)
    by_B_at = layout.parts * scan.rank
    sums_of_row = by_B_at + 2 * scan.state
    kept = layout.starts * (layout.block_n + 2 * layout.group) * layout.width
    outputs = [
        sequence,
        _float32(1) if scan.rank else sequence,
        _float32(scan.batch, scan.length, scan.directions, layout.blocks, sums_of_row),
        _float32(*segments, layout.parts, *per_channel, max(scan.rank, 1)),
        _float32(*segments, layout.parts, *per_channel),
        _float32(*segments, *per_channel, scan.state),
        _float32(*segments, *per_channel),
        _float32(scan.batch, *per_channel, scan.state),
        _float32(scan.batch * layout.programs_per_element, kept),
    ]
    inputs += [paths, boundaries, grad_y, boundaries if grad_last is None else grad_last]
    inputs += [ends, sums]
    by_u, by_delta, by_rows, by_weight, by_bias, by_A, by_D, by_initial, _ = launch(
        "scan_backward", inputs, outputs, scan.batch, layout
    )
    by_rows = by_rows.sum(3)
    by_dt, by_B, by_C = jnp.split(by_rows, [by_B_at, by_B_at + scan.state], axis=-1)
    by_dt = by_dt.reshape(*by_dt.shape[:-1], layout.parts, scan.rank).sum(-2)
    by_weight, by_bias = by_weight.sum((0, 1, 2)), by_bias.sum((0, 1, 2))
    sums = (by_weight, by_bias, by_A.sum((0, 1)), by_D.sum((0, 1)), by_initial)
    return by_u, by_delta, by_dt, by_B, by_C, *sums


def _config(**shape: int) -> Config:
    return tuning.choose("triton_scan", heuristic(shape), shape)


# The selective scan.


def selective_scan(operands: ScanOperands, *, delta_softplus: bool, reverse: bool):
    """Implements `selective_scan_jax.selective_scan` and returns (y, last_state)."""
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


def _rows(*coefficients):
    """Returns dt, B and C side by side, so that one address serves all of a position and
    direction.
    """
    return jnp.concatenate([c.astype(jnp.float32) for c in coefficients], axis=-1)


@functools.partial(jax.custom_vjp, nondiff_argnums=(8,))
def _selective_scan(u, delta, A, B, C, D, bias, initial, scan):
    return _selective_forward(scan, False, u, delta, A, B, C, D, bias, initial)[:2]


def _selective_forward(scan, save, u, delta, A, B, C, D, bias, initial):
    rows = _rows(B, C)
    y, last, boundaries = _forward(scan, save, u, None, delta, rows, None, bias, A, D, initial)
    return y.sum(1), last.reshape(scan.batch, -1, scan.state), boundaries


def _selective_scan_fwd(u, delta, A, B, C, D, bias, initial, scan):
    arrays = (u, delta, A, B, C, D, bias, initial)
    y, last, boundaries = _selective_forward(scan, True, *arrays)
    return (y, last), (arrays, boundaries)


def _selective_scan_bwd(scan, saved, grads):
    arrays, boundaries = saved
    u, delta, A, B, C, D, bias, _ = arrays
    by_u, by_delta, _, by_B, by_C, _, by_bias, by_A, by_D, by_initial = _backward(
        scan, u, None, delta, _rows(B, C), None, bias, A, D, boundaries, *grads
    )
    gradients = (by_u.sum(1), by_delta.sum(1), by_A, by_B, by_C, by_D, by_bias, by_initial)
    return tuple(
        None if a is None else g.reshape(a.shape).astype(a.dtype)
        for a, g in zip(arrays, gradients, strict=True)
    )


_selective_scan.defvjp(_selective_scan_fwd, _selective_scan_bwd)


# The cross scan.


def cross_scan(operands: CrossScanOperands, *, order: ScanOrder):
    """Implements `selective_scan_jax.cross_scan`."""
    x, dt, B, C, dt_weight, dt_bias, A, D = operands
    batch, frames, joints, channels = x.shape
    directions, rank = dt.shape[3:]
    shape = {"batch": batch, "length": frames * joints, "channels": channels}
    shape |= {"directions": directions, "state": B.shape[-1], "rank": rank}
    scan = _Scan(
        **shape, softplus=True, order=order, frames=frames, joints=joints, config=_config(**shape)
    )
    # Side by side already here, so that it is what the gradient keeps.
    return _cross_scan(x, _rows(dt, B, C), dt_weight, dt_bias, A, D, scan)


def _with_limbs(scan: _Scan, x):
    """Returns x with its limb term; a block has the same, and the compiler computes it once."""
    return None if scan.order.limb_walk is None else limb_term(x, scan.order)


@functools.partial(jax.custom_vjp, nondiff_argnums=(6,))
def _cross_scan(x, rows, weight, bias, A, D, scan):
    return _cross_forward(scan, False, x, rows, weight, bias, A, D)[0]


def _cross_forward(scan, save, x, rows, weight, bias, A, D):
    limbs = _with_limbs(scan, x)
    y, _, boundaries = _forward(scan, save, x, limbs, None, rows, weight, bias, A, D, None)
    # Once: XLA would put the addition into every operation that reads the sum.
    return jax.lax.optimization_barrier(y.sum((1, 2))), boundaries


def _cross_scan_fwd(x, rows, weight, bias, A, D, scan):
    arrays = (x, rows, weight, bias, A, D)
    y, boundaries = _cross_forward(scan, True, *arrays)
    return y, (arrays, boundaries)


def _cross_scan_bwd(scan, saved, grad_y):
    arrays, boundaries = saved
    x, rows, weight, bias, A, D = arrays
    limbs = _with_limbs(scan, x)
    by_u, _, *by_rows, by_weight, by_bias, by_A, by_D, _ = _backward(
        scan, x, limbs, None, rows, weight, bias, A, D, boundaries, grad_y, None
    )
    gradients = (_by_x(scan, by_u), _rows(*by_rows), by_weight, by_bias, by_A, by_D)
    return tuple(g.reshape(a.shape).astype(a.dtype) for a, g in zip(arrays, gradients, strict=True))


_cross_scan.defvjp(_cross_scan_fwd, _cross_scan_bwd)


def _by_x(scan: _Scan, by_u):
    """Returns the gradient by x from that by the u of each direction and part of the states,
    (batch, p, k, frames, joints, e).

    Parts are taken out one by one, which XLA reads from the array itself.
    """

    def added(directions):
        parts = [by_u[:, p, k] for k in directions for p in range(by_u.shape[1])]
        return functools.reduce(jnp.add, parts)

    limbs = [k for k in range(scan.directions) if scan.takes_limbs(k)]
    others = [k for k in range(scan.directions) if not scan.takes_limbs(k)]
    total = added(others) if others else 0
    if limbs:
        by_term = added(limbs)
        total += jax.vjp(lambda x: limb_term(x, scan.order), by_term)[1](by_term)[0]
    return total
