"""The scan as Mosaic kernels for TPUs, by way of Pallas.

Both operators run the same two kernels (`mosaic_tpu_forward`, `mosaic_tpu_backward`) over arrays of
(batch, lines, frames, channels). A selective scan has one line. A cross scan has one line per
joint: x is transposed to (batch, joints, frames, channels) once, and each direction reads it, and
adds its output to that of the direction before, by index maps. Neither a copy of x per direction
nor the step sizes exist in the device's main memory. B and C of all directions are laid out once,
side by side, dt for each direction by chunk, with the steps of a chunk innermost.

Only channels per group that are no multiple of 128, numbers of states that are no multiple of 8 and
paths shorter than 128 steps are padded.
"""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
from jax import lax

from selective_scan_jax.elementwise import first_state
from selective_scan_jax.mosaic_tpu import plan as planning
from selective_scan_jax.mosaic_tpu.backward import backward
from selective_scan_jax.mosaic_tpu.chunk import LN2
from selective_scan_jax.mosaic_tpu.forward import forward
from selective_scan_jax.mosaic_tpu.plan import LANES, SUBLANES, Plan, TpuConfig
from selective_scan_jax.operands import CrossScanOperands, ScanOperands
from selective_scan_jax.order import ScanOrder
from selective_scan_jax.target import interpreting
from selective_scan_jax.tuning import choose

__all__ = ["cross_scan", "selective_scan"]


@dataclasses.dataclass(frozen=True)
class _Options:
    """What both passes of an operator are compiled for; fixed when the operator is called."""

    config: TpuConfig
    interpret: bool
    delta_softplus: bool = True
    reverse: bool = False
    order: ScanOrder | None = None


def _config(kernel: str, shape: dict) -> TpuConfig:
    default = planning.heuristic(shape["channels"], shape["state"])
    return choose(kernel, default, shape)


def _pad(x, axis: int, multiple: int):
    extra = -x.shape[axis] % multiple
    if not extra:
        return x
    widths = [(0, 0)] * x.ndim
    widths[axis] = (0, extra)
    return jnp.pad(x, widths)


def _pad_to(x, axis: int, size: int):
    return _pad(x, axis, size) if x.shape[axis] < size else x


class _Channels:
    """Channels in groups, each padded to whole vector registers, and states to whole sublanes."""

    def __init__(self, channels: int, groups: int):
        self.channels, self.groups = channels, groups
        self.per_group = channels // groups
        self.padded_per_group = self.per_group + -self.per_group % LANES

    @property
    def padded(self) -> int:
        return self.padded_per_group * self.groups

    def pad(self, x):
        """Fills (..., channels) up to (..., padded)."""
        if self.padded == self.channels:
            return x
        x = x.reshape(*x.shape[:-1], self.groups, self.per_group)
        x = _pad(x, x.ndim - 1, LANES)
        return x.reshape(*x.shape[:-2], self.padded)

    def unpad(self, x):
        if self.padded == self.channels:
            return x
        x = x.reshape(*x.shape[:-1], self.groups, self.padded_per_group)[..., : self.per_group]
        return x.reshape(*x.shape[:-2], self.channels)

    def state_major(self, x):
        """Rearranges (..., channels, n) to float32 (..., padded n, padded channels)."""
        x = x.astype(jnp.float32).swapaxes(-1, -2)
        return self.pad(_pad(x, x.ndim - 2, SUBLANES))

    def channel_major(self, x, states: int):
        """Undoes `state_major`."""
        return self.unpad(x)[..., :states, :].swapaxes(-1, -2)

    def row(self, x):
        """Makes a parameter (channels,) a float32 row (1, padded)."""
        return self.pad(x.astype(jnp.float32))[None]


def _by_chunk(plan: Plan, x):
    """Rearranges (batch, frames, lines, groups, n) to float32 (batch, groups, lines / line_block,
    tiles, padded n, row_lanes): by chunk, its rows in the lanes.
    """
    batch, _, lines, groups, n = x.shape
    x = _pad_to(x.astype(jnp.float32), 1, plan.tiles * plan.frame_block)
    line_chunks = lines // plan.line_block
    x = x.reshape(batch, plan.tiles, plan.frame_block, line_chunks, plan.line_block, groups, n)
    x = x.transpose(0, 5, 3, 1, 6, 4, 2)
    x = x.reshape(*x.shape[:5], plan.rows)
    return _pad(_pad(x, 4, SUBLANES), 5, LANES)


def _by_position(plan: Plan, x, n: int):
    """Undoes `_by_chunk`."""
    x = x[..., :n, : plan.rows]
    x = x.reshape(*x.shape[:5], plan.line_block, plan.frame_block)
    x = x.transpose(0, 3, 6, 2, 5, 1, 4)
    shape = (plan.batch, plan.tiles * plan.frame_block, plan.lines, *x.shape[5:])
    return x.reshape(shape)[:, : plan.frames]


def _coefficients(B, C):
    """Puts B before C of each set, side by side: (..., k, n) to (..., k * 2 * padded n), padded."""
    both = [_pad(x.astype(jnp.float32), x.ndim - 1, SUBLANES) for x in (B, C)]
    both = jnp.concatenate(both, axis=-1)
    return _pad(both.reshape(*both.shape[:-2], -1), both.ndim - 2, LANES)


def _split_coefficients(plan: Plan, x, states: int):
    """Takes B's and C's part of gradients by chunk, each by position."""
    return tuple(_by_position(plan, half, states) for half in jnp.split(x, 2, axis=4))


def selective_scan(operands: ScanOperands, *, delta_softplus: bool, reverse: bool):
    """Implements `selective_scan_jax.selective_scan` and returns (y, last_state)."""
    batch, length, channels = operands.u.shape
    groups, states = operands.B.shape[2:]
    sizes = {"batch": batch, "length": length, "channels": channels // groups, "state": states}
    config = _config("mosaic_tpu_selective_scan", sizes)
    options = _Options(config, interpreting(), delta_softplus, reverse)
    state = first_state(operands.initial_state, batch, channels, states)
    return _scan(operands._replace(initial_state=state), options)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def _scan(operands, options):
    y, last_state, _ = _selective_forward(operands, options, with_boundaries=False)
    return y, last_state


def _scan_fwd(operands, options):
    y, last_state, boundaries = _selective_forward(operands, options, with_boundaries=True)
    return (y, last_state), (operands, boundaries)


def _scan_bwd(options, residuals, grads):
    return (_selective_backward(*residuals, *grads, options),)


_scan.defvjp(_scan_fwd, _scan_bwd)


def _selective_operands(operands, options):
    """Returns the plan, the channels and the kernels' arrays by name."""
    u, delta, A, B, C, D, delta_bias, z, _ = operands
    batch, length, channels = u.shape
    groups = B.shape[2]
    layout = _Channels(channels, groups)
    plan = Plan(
        batch=batch,
        lines=1,
        frames=length,
        channels=layout.padded,
        states=A.shape[1] + -A.shape[1] % SUBLANES,
        groups=groups,
        direction=0,
        by_frame=False,
        frames_reversed=options.reverse,
        lines_reversed=False,
        frame_block=planning.frame_block(length, 1, False, TpuConfig()),
        channel_block=planning.channel_block(layout.padded_per_group, options.config),
        unrolled=not options.interpret,
    )
    arrays = {
        "x": _line(plan, layout, u),
        "raw": _line(plan, layout, delta),
        "A": layout.state_major(A) / LN2,
        "coefficients": _pad_to(_coefficients(B, C), 1, plan.padded_frames)[:, None],
    }
    if D is not None:
        arrays["D"] = layout.row(D)
    if delta_bias is not None:
        arrays["bias"] = layout.row(delta_bias)
    if z is not None:
        arrays["z"] = _line(plan, layout, z)
    return plan, layout, arrays


def _line(plan: Plan, layout: _Channels, x):
    """Rearranges (batch, length, channels) to an array of one line."""
    return _pad_to(layout.pad(x), 1, plan.padded_frames)[:, None]


def _unline(plan: Plan, layout: _Channels, x):
    return layout.unpad(x[:, 0, : plan.frames])


def _selective_forward(operands, options, *, with_boundaries: bool):
    plan, layout, arrays = _selective_operands(operands, options)
    arrays["initial"] = layout.state_major(operands.initial_state)
    out = forward(
        plan,
        arrays,
        softplus=options.delta_softplus,
        y_dtype=operands.u.dtype,
        with_boundaries=with_boundaries,
        with_last_state=True,
        interpret=options.interpret,
    )
    last_state = layout.channel_major(out["last_state"], operands.A.shape[1])
    return _unline(plan, layout, out["y_out"]), last_state, out.get("boundaries")


def _selective_backward(operands, boundaries, dy, dlast_state, options):
    u, delta, A, B, C, D, delta_bias, z, _ = operands
    plan, layout, arrays = _selective_operands(operands, options)
    arrays["boundaries"] = boundaries
    arrays["dy"] = _line(plan, layout, dy)
    arrays["dlast"] = layout.state_major(dlast_state)
    out = backward(
        plan,
        arrays,
        softplus=options.delta_softplus,
        dtypes={"dx": u.dtype, "draw": delta.dtype, "dz": None if z is None else z.dtype},
        interpret=options.interpret,
    )
    states = A.shape[1]
    dB, dC = _split_coefficients(plan, out["dcoefficients"], states)

    def per_channel(name, like):
        if like is None:
            return None
        return layout.unpad(out[name].sum(0))[0].astype(like.dtype)

    return ScanOperands(
        u=_unline(plan, layout, out["dx"]),
        delta=_unline(plan, layout, out["draw"]),
        A=layout.channel_major(out["dA"].sum(0), states).astype(A.dtype),
        B=dB[:, :, 0].astype(B.dtype),
        C=dC[:, :, 0].astype(C.dtype),
        D=per_channel("dD", D),
        delta_bias=per_channel("dbias", delta_bias),
        z=None if z is None else _unline(plan, layout, out["dz"]),
        initial_state=layout.channel_major(out["dinitial"], states),
    )


def cross_scan(operands: CrossScanOperands, *, order: ScanOrder):
    """Implements `selective_scan_jax.cross_scan`."""
    batch, frames, joints, channels = operands.x.shape
    sizes = {
        "batch": batch,
        "frames": frames,
        "joints": joints,
        "channels": channels,
        "state": operands.B.shape[-1],
        "rank": operands.dt.shape[-1],
        "directions": len(order.directions),
    }
    config = _config("mosaic_tpu_cross_scan", sizes)
    return _cross(operands, _Options(config, interpreting(), order=order))


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def _cross(operands, options):
    return _cross_forward(operands, options, with_boundaries=False)[0]


def _cross_fwd(operands, options):
    y, boundaries = _cross_forward(operands, options, with_boundaries=True)
    # A direction's backward kernel could start before the other directions' forward kernels have
    # run; then y and all that the backward pass allocates would be held at the same time.
    y, boundaries = lax.optimization_barrier((y, boundaries))
    return y, (operands, boundaries)


def _cross_bwd(options, residuals, dy):
    operands, boundaries = residuals
    # For the same reason.
    boundaries, dy = lax.optimization_barrier((boundaries, dy))
    return (_cross_backward(operands, boundaries, dy, options),)


_cross.defvjp(_cross_fwd, _cross_bwd)


def _lines(x, layout: _Channels):
    """Rearranges (batch, frames, joints, channels) to float32 (batch, joints, padded frames,
    channels).
    """
    x = layout.pad(x.astype(jnp.float32).swapaxes(1, 2))
    return _pad_to(x, 2, planning.pad_frames(x.shape[2]))


def _grid(x, layout: _Channels, frames: int):
    """Undoes `_lines`."""
    return layout.unpad(x[:, :, :frames].swapaxes(1, 2))


class _CrossScan:
    """The operands of a cross scan as the kernels read them, and a plan per direction."""

    def __init__(self, operands, options):
        x, self.dt, B, C, *self.weights = operands
        self.order, self.options = options.order, options
        self.shape, self.states = x.shape, B.shape[-1]
        self.layout = layout = _Channels(x.shape[-1], 1)
        self.x = _lines(x, layout)
        self.coefficients = _pad_to(_coefficients(B, C).swapaxes(1, 2), 2, self.x.shape[2])

    def plan(self, k: int) -> Plan:
        batch, frames, joints, _ = self.shape
        direction = self.order.directions[k]
        # Frame by frame through a single joint is that joint's frames.
        by_frame = direction.frame_by_frame and joints > 1
        inner = direction.inner_reversed and (by_frame or not direction.frame_by_frame)
        inner_reversed = inner != direction.reverse
        block = planning.frame_block(frames, joints, by_frame, self.options.config)
        return Plan(
            batch=batch,
            lines=joints,
            frames=frames,
            channels=self.layout.padded,
            states=self.states + -self.states % SUBLANES,
            groups=1,
            direction=k,
            by_frame=by_frame,
            frames_reversed=direction.reverse if by_frame else inner_reversed,
            lines_reversed=inner_reversed if by_frame else direction.reverse,
            frame_block=block,
            channel_block=planning.channel_block(self.layout.padded, self.options.config),
            unrolled=not self.options.interpret,
        )

    def arrays(self, k: int) -> dict:
        dt_weight, dt_bias, A, D = (w[k] for w in self.weights)
        weight = self.layout.pad(dt_weight.astype(jnp.float32).T)
        return {
            "x": self.x,
            "dt": _by_chunk(self.plan(k), self.dt[:, :, :, k : k + 1]),
            "weight": _pad(weight, 0, SUBLANES),
            "bias": self.layout.row(dt_bias),
            "A": self.layout.state_major(A) / LN2,
            "D": self.layout.row(D),
            "coefficients": self.coefficients,
        }

    def limb_walk(self, k: int):
        return self.order.limb_walk if self.order.takes_limb_term(k) else None


def _cross_forward(operands, options, *, with_boundaries: bool):
    scan = _CrossScan(operands, options)
    y, boundaries = {}, []
    for k in range(len(options.order.directions)):
        out = forward(
            scan.plan(k),
            scan.arrays(k) | y,
            softplus=True,
            limb_walk=scan.limb_walk(k),
            with_boundaries=with_boundaries,
            with_last_state=False,
            interpret=options.interpret,
        )
        y = {"y": out["y_out"]}
        boundaries.append(out.get("boundaries"))
    return _grid(y["y"], scan.layout, scan.shape[1]), boundaries


def _cross_backward(operands, boundaries, dy, options):
    scan = _CrossScan(operands, options)
    rank, states = operands.dt.shape[-1], scan.states
    dy = _lines(dy, scan.layout)
    dx, per_direction = {}, []
    for k, kept in enumerate(boundaries):
        plan = scan.plan(k)
        out = backward(
            plan,
            scan.arrays(k) | dx | {"boundaries": kept, "dy": dy},
            softplus=True,
            limb_walk=scan.limb_walk(k),
            limb_exact=options.order.limb_gradient == "exact",
            dtypes={"dx": jnp.float32},
            interpret=options.interpret,
        )
        dx = {"dx": out["dx"]}
        per_direction.append(
            (
                _by_position(plan, out["ddt"], rank)[:, :, :, 0],
                *(x[:, :, :, 0] for x in _split_coefficients(plan, out["dcoefficients"], states)),
                out["dweight"].sum(0)[:rank].T,
                out["dbias"].sum(0)[0],
                out["dA"].sum(0),
                out["dD"].sum(0)[0],
            )
        )
    small, per_channel = zip(*((g[:3], g[3:]) for g in per_direction), strict=True)
    ddt, dB, dC = (jnp.stack(x, axis=3) for x in zip(*small, strict=True))
    dweight, dbias, dA, dD = (jnp.stack(x) for x in zip(*per_channel, strict=True))
    layout = scan.layout
    grads = (
        _grid(dx["dx"], layout, scan.shape[1]),
        *(ddt, dB, dC),
        layout.unpad(dweight.swapaxes(1, 2)).swapaxes(1, 2),
        layout.unpad(dbias),
        layout.channel_major(dA, scan.states),
        layout.unpad(dD),
    )
    return CrossScanOperands(*(g.astype(a.dtype) for g, a in zip(grads, operands, strict=True)))
