"""The scan as Pallas kernels for NVIDIA GPUs from Hopper on, by way of Mosaic GPU.

See docs/pallas_gpu.md. A launch runs one direction: a program takes 128 channels of one batch
element over a part of time. Directions follow one another, each adding to the output of those
before, so the merge has a fixed order and there is no stack of outputs. Gradients that are sums
over programs are written apart and added up by XLA.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp

from selective_scan_jax.grid import Direction, ScanOrder
from selective_scan_jax.target import current_target, interpreting

MINIMUM_JAX = (0, 11)
HOPPER = 90


def unavailable_reason() -> str | None:
    """Why the kernels cannot run here, or None if they can."""
    if jax.__version_info__ < MINIMUM_JAX:
        return f"needs jax 0.11 or later, this is {jax.__version__}"
    if interpreting():
        return None
    capability = current_target().compute_capability
    if capability is not None and capability < HOPPER:
        return (
            "needs a GPU of compute capability 9.0 (Hopper) or later, this one has "
            f"{capability // 10}.{capability % 10}"
        )
    return None


def _interpreter():
    """What `interpret=` of a kernel takes: the interpreter, with memory full of NaN, or False."""
    if not interpreting():
        return False
    from jax.experimental.pallas import mosaic_gpu as plgpu

    return plgpu.InterpretGPUParams(uninitialized_memory="nan")


def _pad_channels(x, groups: int, axis: int = -1):
    """Fills the channels of each group up to whole blocks; `axis` is the axis of channels."""
    if x is None:
        return None
    from selective_scan_jax.pallas_gpu_config import CHANNELS

    axis %= x.ndim
    size = x.shape[axis] // groups
    extra = -size % CHANNELS
    if not extra:
        return x
    shape = x.shape
    x = x.reshape(*shape[:axis], groups, size, *shape[axis + 1 :])
    widths = [(0, 0)] * x.ndim
    widths[axis + 1] = (0, extra)
    return jnp.pad(x, widths).reshape(*shape[:axis], groups * (size + extra), *shape[axis + 1 :])


def _cut_channels(x, channels: int, groups: int, axis: int = -1):
    """Inverse of `_pad_channels`."""
    axis %= x.ndim
    if x.shape[axis] == channels:
        return x
    shape = x.shape
    x = x.reshape(*shape[:axis], groups, shape[axis] // groups, *shape[axis + 1 :])
    x = jax.lax.slice_in_dim(x, 0, channels // groups, axis=axis + 1)
    return x.reshape(*shape[:axis], channels, *shape[axis + 1 :])


def _float32(x):
    return None if x is None else x.astype(jnp.float32)


# ---- selective scan


def selective_scan(
    u, delta, A, B, C, D, delta_bias, z, initial_state, *, delta_softplus: bool, reverse: bool
):
    """See `selective_scan_jax.selective_scan`; returns (y, last_state)."""
    from selective_scan_jax.pallas_gpu_config import choose_config

    batch, length, channels = u.shape
    shape = {"batch": batch, "length": length, "channels": channels, "rank": 0}
    config = choose_config("pallas_gpu_selective_scan", shape | {"states": A.shape[1]})
    static = (delta_softplus, reverse, config, bool(interpreting()))
    return _selective_scan(u, delta, A, B, C, D, delta_bias, z, initial_state, static)


def _line(u, A, B, delta_softplus, reverse, config, interpret):
    """The walk of a selective scan; u with padded channels."""
    from selective_scan_jax.pallas_gpu_config import CHANNELS
    from selective_scan_jax.pallas_gpu_walk import Walk, parts_of

    batch, length, width = u.shape
    states = A.shape[1]
    blocks = width // CHANNELS
    return Walk(
        length=length,
        states=states,
        direction=0,
        start=length - 1 if reverse else 0,
        inner=length,
        inner_stride=-1 if reverse else 1,
        outer_stride=0,
        blocks_per_group=blocks // B.shape[2],
        softplus=delta_softplus,
        joints=None,
        config=config,
        parts=parts_of(length, batch * blocks, config),
    )


def _selective_operands(arrays):
    """The kernels' operands, and the first state."""
    u, delta, A, B, C, D, delta_bias, z, initial_state = arrays
    groups = B.shape[2]
    pad = functools.partial(_pad_channels, groups=groups)
    operands = {
        "u": pad(u),
        "delta": pad(delta),
        "A": pad(_float32(A).T[None]),
        "B": B,
        "C": C,
        "D": None if D is None else pad(_float32(D)[None]),
        "bias": None if delta_bias is None else pad(_float32(delta_bias)[None]),
        "z": pad(z),
    }
    first = None if initial_state is None else pad(_float32(initial_state).swapaxes(1, 2))
    return operands, first


@functools.partial(jax.custom_vjp, nondiff_argnums=(9,))
def _selective_scan(u, delta, A, B, C, D, delta_bias, z, initial_state, static):
    arrays = (u, delta, A, B, C, D, delta_bias, z, initial_state)
    return _selective_forward(arrays, static, save=False)[0]


def _selective_forward(arrays, static, *, save: bool):
    from selective_scan_jax.pallas_gpu_forward import forward

    u, _, A, B = arrays[:4]
    operands, first = _selective_operands(arrays)
    walk = _line(operands["u"], A, B, *static)
    out = forward(walk, operands, first, u.dtype, save=save, last=True, interpret=_interpreter())
    channels, groups = u.shape[2], B.shape[2]
    y = _cut_channels(out["y"], channels, groups)
    last_state = _cut_channels(out["last_state"], channels, groups).swapaxes(1, 2)
    return (y, last_state), out.get("boundaries")


def _selective_scan_fwd(u, delta, A, B, C, D, delta_bias, z, initial_state, static):
    arrays = (u, delta, A, B, C, D, delta_bias, z, initial_state)
    outputs, boundaries = _selective_forward(arrays, static, save=True)
    return outputs, (arrays, boundaries)


def _selective_scan_bwd(static, saved, grads):
    from selective_scan_jax.pallas_gpu_backward import backward

    arrays, boundaries = saved
    u, delta, A, B, C, D, delta_bias, z, initial_state = arrays
    channels, groups = u.shape[2], B.shape[2]
    operands, _ = _selective_operands(arrays)
    walk = _line(operands["u"], A, B, *static)
    types = {"u": u.dtype, "delta": delta.dtype}
    if z is not None:
        types["z"] = z.dtype
    out = backward(
        walk,
        operands,
        boundaries,
        _pad_channels(grads[0], groups),
        _pad_channels(grads[1].swapaxes(1, 2), groups),
        None,
        types,
        first=initial_state is not None,
        interpret=_interpreter(),
    )
    cut = functools.partial(_cut_channels, channels=channels, groups=groups)

    def in_place(x):  # (batch, steps, ...) to positions
        return jnp.flip(x, 1) if static[1] else x

    def like(gradient, array):
        return None if array is None else gradient().astype(array.dtype)

    return (
        cut(out["du"]),
        cut(out["ddelta"]),
        like(lambda: cut(out["dA"]).T, A),
        like(lambda: in_place(out["dB"]), B),
        like(lambda: in_place(out["dC"]), C),
        like(lambda: cut(out["dD"]), D),
        like(lambda: cut(out["dbias"]), delta_bias),
        like(lambda: cut(out["dz"]), z),
        like(lambda: cut(out["dfirst"]).swapaxes(1, 2), initial_state),
    )


_selective_scan.defvjp(_selective_scan_fwd, _selective_scan_bwd)


# ---- cross scan


def cross_scan(x, dt, B, C, dt_weight, dt_bias, A, D, *, order: ScanOrder):
    """See `selective_scan_jax.cross_scan`."""
    from selective_scan_jax.pallas_gpu_config import choose_config

    batch, frames, joints, channels = x.shape
    shape = {"batch": batch, "length": frames * joints, "channels": channels}
    shape |= {"states": B.shape[-1], "rank": dt.shape[-1]}
    config = choose_config("pallas_gpu_cross_scan", shape)
    static = (order, config, bool(interpreting()))
    return _cross_scan(x, dt, B, C, dt_weight, dt_bias, A, D, static)


def _walks(x, states: int, order: ScanOrder, config):
    """The walk of each direction."""
    from selective_scan_jax.pallas_gpu_config import CHANNELS
    from selective_scan_jax.pallas_gpu_walk import Walk, parts_of

    batch, frames, joints, channels = x.shape
    blocks = -(-channels // CHANNELS)
    length = frames * joints
    parts = parts_of(length, batch * blocks, config)
    for k, direction in enumerate(order.directions):
        start, inner, inner_stride, outer_stride = _path(direction, frames, joints)
        yield Walk(
            length=length,
            states=states,
            direction=k,
            start=start,
            inner=inner,
            inner_stride=inner_stride,
            outer_stride=outer_stride,
            blocks_per_group=None,
            softplus=True,
            joints=joints if order.takes_limb_term(k) else None,
            config=config,
            parts=parts,
        )


def _path(direction: Direction, frames: int, joints: int) -> tuple[int, int, int, int]:
    """A direction's start, length of its inner axis, inner and outer stride."""
    outer, inner = (frames, joints) if direction.frame_by_frame else (joints, frames)
    inner_stride, outer_stride = (1, joints) if direction.frame_by_frame else (joints, 1)
    start = 0
    if direction.inner_reversed:
        start, inner_stride = (inner - 1) * inner_stride, -inner_stride
    if direction.reverse:
        start += (inner - 1) * inner_stride + (outer - 1) * outer_stride
        inner_stride, outer_stride = -inner_stride, -outer_stride
    return start, inner, inner_stride, outer_stride


def _to_grid(steps, direction: Direction, x):
    """(batch, steps, n) in the order of a direction's walk to (batch, frames, joints, n)."""
    steps = jnp.flip(steps, 1) if direction.reverse else steps
    return direction.to_grid(steps, *x.shape[1:3])


def _flat(x):
    """(batch, frames, joints, ...) to (batch, positions, ...)."""
    return x.reshape(x.shape[0], x.shape[1] * x.shape[2], *x.shape[3:])


def _cross_operands(arrays, order: ScanOrder):
    x, dt, B, C, dt_weight, dt_bias, A, D = arrays
    pad = functools.partial(_pad_channels, groups=1)
    walk = None if order.limb_walk is None else jnp.asarray(order.limb_walk, jnp.int32)
    return {
        "u": pad(_flat(x)),
        "dt": _flat(dt),
        "B": _flat(B),
        "C": _flat(C),
        "step_weight": pad(_float32(dt_weight).swapaxes(1, 2)),
        "bias": pad(_float32(dt_bias)),
        "A": pad(_float32(A).swapaxes(1, 2)),
        "D": pad(_float32(D)),
        "limb_walk": walk,
    }


def _with_limbs(operands, walk):
    """The operands of one direction."""
    return operands if walk.joints is not None else {**operands, "limb_walk": None}


@functools.partial(jax.custom_vjp, nondiff_argnums=(8,))
def _cross_scan(x, dt, B, C, dt_weight, dt_bias, A, D, static):
    return _cross_forward((x, dt, B, C, dt_weight, dt_bias, A, D), static, save=False)[0]


def _cross_forward(arrays, static, *, save: bool):
    from selective_scan_jax.pallas_gpu_forward import forward

    x, (order, config, _) = arrays[0], static
    operands = _cross_operands(arrays, order)
    y, boundaries = None, []
    for walk in _walks(x, arrays[2].shape[-1], order, config):
        inputs = {**_with_limbs(operands, walk), "y_before": y}
        out = forward(
            walk, inputs, None, jnp.float32, save=save, last=False, interpret=_interpreter()
        )
        y = out["y"]
        boundaries.append(out.get("boundaries"))
    return _cut_channels(y, x.shape[-1], 1).reshape(x.shape), boundaries


def _cross_scan_fwd(x, dt, B, C, dt_weight, dt_bias, A, D, static):
    arrays = (x, dt, B, C, dt_weight, dt_bias, A, D)
    y, boundaries = _cross_forward(arrays, static, save=True)
    return y, (arrays, boundaries)


def _cross_scan_bwd(static, saved, grad_y):
    from selective_scan_jax.grid import limb_term
    from selective_scan_jax.pallas_gpu_backward import backward

    arrays, boundaries = saved
    x, (order, config, _) = arrays[0], static
    operands = _cross_operands(arrays, order)
    dy = _pad_channels(_flat(grad_y), 1)
    by_source = {False: None, True: None}  # gradients by x, and by x with its limb term
    rows, sums = [], []
    for walk, kept in zip(_walks(x, arrays[2].shape[-1], order, config), boundaries, strict=True):
        limbs = walk.joints is not None
        out = backward(
            walk,
            _with_limbs(operands, walk),
            kept,
            dy,
            None,
            by_source[limbs],
            {"u": jnp.float32},
            first=False,
            interpret=_interpreter(),
        )
        by_source[limbs] = out["du"]
        direction = order.directions[walk.direction]
        rows.append([_to_grid(out[k][:, :, 0], direction, x) for k in ("ddt", "dB", "dC")])
        sums.append([out[name] for name in ("dstep_weight", "dbias", "dA", "dD")])

    def grid(gradient):
        return _cut_channels(gradient, x.shape[-1], 1).reshape(x.shape)

    dx = None if by_source[False] is None else grid(by_source[False])
    if by_source[True] is not None:
        pull_back = jax.vjp(lambda x: limb_term(x, order), jnp.zeros(x.shape, jnp.float32))[1]
        through_limbs = pull_back(grid(by_source[True]))[0]
        dx = through_limbs if dx is None else dx + through_limbs
    rows, sums = zip(*rows, strict=True), zip(*sums, strict=True)
    grads = [jnp.stack(g, 3) for g in rows]
    dW, dbias, dA, dD = (_cut_channels(jnp.stack(g), x.shape[-1], 1) for g in sums)
    grads += [dW.swapaxes(1, 2), dbias, dA.swapaxes(1, 2), dD]
    return tuple(g.astype(a.dtype) for g, a in zip((dx, *grads), arrays, strict=True))


_cross_scan.defvjp(_cross_scan_fwd, _cross_scan_bwd)
