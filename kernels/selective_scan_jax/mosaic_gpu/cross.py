"""The cross scan on the Mosaic GPU kernels, whose programs read the grid along a direction's path.

Where programs are few, all directions are one launch and each has an output of its own; these are
added up afterwards. Else a direction is a launch of its own and adds to the output of those before
it. Either way the merge has a fixed order, and there is no stack of inputs or step sizes. The
backward pass does the same with the gradient by x; that of the directions with a limb term is added
up apart and goes through the transpose of the limb term at the end.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp

from selective_scan_jax.mosaic_gpu.backward import backward
from selective_scan_jax.mosaic_gpu.channels import cut_channels, float32, pad_channels
from selective_scan_jax.mosaic_gpu.forward import forward
from selective_scan_jax.mosaic_gpu.heuristic import CHANNELS, choose_config, parts_of, side_by_side
from selective_scan_jax.mosaic_gpu.walk import Path, Walk
from selective_scan_jax.order import Direction, ScanOrder, limb_term


def cross_scan(arrays, order: ScanOrder, interpret):
    """Runs the backend's operator; `arrays` in its order, `interpret` as a Pallas kernel takes
    it.
    """
    x, dt, B, *_ = arrays
    batch, frames, joints, channels = x.shape
    shape = {"batch": batch, "length": frames * joints, "channels": channels}
    shape |= {"states": B.shape[-1], "rank": dt.shape[-1]}
    config = choose_config("mosaic_gpu_cross_scan", shape)
    return _cross_scan(*arrays, (order, config, interpret))


def _flat(x):
    """Rearranges (batch, frames, joints, ...) to (batch, positions, ...)."""
    return x.reshape(x.shape[0], x.shape[1] * x.shape[2], *x.shape[3:])


def _launches(arrays, order: ScanOrder, config, *, backward: bool = False):
    """Returns for each launch its directions, how their scan is cut up, and its operands."""
    x, dt, B, C, dt_weight, dt_bias, A, D = arrays
    batch, frames, joints, channels = x.shape
    pad = functools.partial(pad_channels, groups=1)
    operands = {
        "u": pad(_flat(x)),
        # What every thread reads: to convert it there takes a third more instructions.
        "dt": float32(_flat(dt)),
        "B": float32(_flat(B)),
        "C": float32(_flat(C)),
        "step_weight": pad(float32(dt_weight).swapaxes(1, 2)),
        "bias": pad(float32(dt_bias)),
        "A": pad(float32(A).swapaxes(1, 2)),
        "D": pad(float32(D)),
    }
    # An operand, since looking up the limb at every step is a load that waits for another.
    u_limbs = pad(_flat(limb_term(x, order)))
    blocks, every = -(-channels // CHANNELS), range(len(order.directions))
    together = side_by_side(batch * blocks, config)
    for ks in [tuple(every)] if together else [(k,) for k in every]:
        paths = [_path(order, k, frames, joints) for k in ks]
        different = tuple(dict.fromkeys(path for path, _ in paths))
        rows = [
            [k, *strides, different.index(path)]
            for k, (path, strides) in zip(ks, paths, strict=True)
        ]
        walk = Walk(
            length=frames * joints,
            states=B.shape[-1],
            paths=different,
            directions=len(ks),
            blocks_per_group=blocks,
            softplus=True,
            config=config,
            parts=parts_of(frames * joints, batch * blocks * len(ks), config, backward=backward),
        )
        yield (
            ks,
            walk,
            {
                **operands,
                "u_limbs": u_limbs if any(path.limbs for path in different) else None,
                "path": jnp.array(rows, jnp.int32),
                "group_of_block": jnp.array([[k] * blocks for k in ks], jnp.int32),
            },
        )


def _path(order: ScanOrder, k: int, frames: int, joints: int):
    """Returns what a kernel is compiled for of direction k, and its start and strides."""
    start, inner, *strides = order.directions[k].strides(frames, joints)
    if inner * strides[0] == strides[1]:
        inner = frames * joints  # the same stride throughout
    return Path(inner, order.takes_limb_term(k)), (start, *strides)


@functools.partial(jax.custom_vjp, nondiff_argnums=(8,))
def _cross_scan(x, dt, B, C, dt_weight, dt_bias, A, D, static):
    return _forward((x, dt, B, C, dt_weight, dt_bias, A, D), static, save=False)[0]


def _forward(arrays, static, *, save: bool):
    x, (order, config, interpret) = arrays[0], static
    y, boundaries = None, []
    for ks, walk, operands in _launches(arrays, order, config):
        inputs = {**operands, "y_before": y}
        out = forward(walk, inputs, None, jnp.float32, save=save, last=False, interpret=interpret)
        y = _added(_by_direction(out["y"], ks))
        boundaries.append(out.get("boundaries"))
    return cut_channels(y, x.shape[-1], 1).reshape(x.shape), boundaries


def _by_direction(rows, ks):
    """Rearranges (rows, ...) to an array (batch, ...) for each direction of a launch."""
    rows = rows.reshape(-1, len(ks), *rows.shape[1:])
    return [rows[:, i] for i in range(len(ks))]


def _added(terms):
    """Adds up the terms, from the first to the last."""
    return functools.reduce(jnp.add, terms)


def _cross_scan_fwd(x, dt, B, C, dt_weight, dt_bias, A, D, static):
    arrays = (x, dt, B, C, dt_weight, dt_bias, A, D)
    y, boundaries = _forward(arrays, static, save=True)
    return y, (arrays, boundaries)


def _cross_scan_bwd(static, saved, grad_y):
    arrays, boundaries = saved
    x, (order, config, interpret) = arrays[0], static
    dy = pad_channels(_flat(grad_y), 1)
    by_source = {False: None, True: None}  # gradients by x, and by x with its limb term
    rows, sums = [], []
    launches = zip(_launches(arrays, order, config, backward=True), boundaries, strict=True)
    for (ks, walk, operands), kept in launches:
        types = (("u", jnp.float32),)
        alone = walk.paths[0].limbs if len(ks) == 1 else None
        before = by_source.get(alone)
        out = backward(
            walk, operands, kept, dy, None, before, types, first=False, interpret=interpret
        )
        du = dict(zip(ks, _by_direction(out["du"], ks), strict=True))
        for limbs in by_source:
            terms = [du[k] for k in ks if order.takes_limb_term(k) == limbs]
            by_source[limbs] = _added(terms) if terms else by_source[limbs]
        by_row = [_by_direction(out[name][:, :, 0], ks) for name in ("ddt", "dB", "dC")]
        for k, *gradients in zip(ks, *by_row, strict=True):
            rows.append([_to_grid(g, order.directions[k], x) for g in gradients])
        sums.append([out[name] for name in ("dstep_weight", "dbias", "dA", "dD")])

    def grid(gradient):
        return cut_channels(gradient, x.shape[-1], 1).reshape(x.shape)

    dx = None if by_source[False] is None else grid(by_source[False])
    if by_source[True] is not None:
        pull_back = jax.vjp(lambda x: limb_term(x, order), jnp.zeros(x.shape, jnp.float32))[1]
        through_limbs = pull_back(grid(by_source[True]))[0]
        dx = through_limbs if dx is None else dx + through_limbs
    ddt, dB, dC = (jnp.stack(g, 3) for g in zip(*rows, strict=True))
    per_channel = (jnp.concatenate(g) for g in zip(*sums, strict=True))
    dW, dbias, dA, dD = (cut_channels(g, x.shape[-1], 1) for g in per_channel)
    grads = (dx, ddt, dB, dC, dW.swapaxes(1, 2), dbias, dA.swapaxes(1, 2), dD)
    return tuple(g.astype(a.dtype) for g, a in zip(grads, arrays, strict=True))


def _to_grid(steps, direction: Direction, x):
    """Rearranges (batch, steps, n) in the order of a walk to (batch, frames, joints, n)."""
    steps = jnp.flip(steps, 1) if direction.reverse else steps
    return direction.to_grid(steps, *x.shape[1:3])


_cross_scan.defvjp(_cross_scan_fwd, _cross_scan_bwd)
