"""The cross scan on the Mosaic GPU kernels, one direction after the other.

A direction's kernel reads the grid along its own path and adds to the output of the directions
before it, so that the merge has a fixed order and there is no stack of inputs, step sizes or
outputs. The backward pass does the same with the gradient by x; that of the directions with a limb
term is added up apart and goes through the transpose of the limb term at the end.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp

from selective_scan_jax.mosaic_gpu.backward import backward
from selective_scan_jax.mosaic_gpu.channels import cut_channels, float32, pad_channels
from selective_scan_jax.mosaic_gpu.forward import forward
from selective_scan_jax.mosaic_gpu.heuristic import CHANNELS, choose_config
from selective_scan_jax.mosaic_gpu.walk import Walk, parts_of
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


def _directions(arrays, order: ScanOrder, config):
    """Returns for each direction how its scan is cut up, and its operands."""
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
    length, blocks = frames * joints, -(-channels // CHANNELS)
    for k, direction in enumerate(order.directions):
        start, inner, inner_stride, outer_stride = direction.strides(frames, joints)
        limbs = order.takes_limb_term(k)
        walk = Walk(
            length=length,
            states=B.shape[-1],
            inner=inner,
            blocks_per_group=blocks,
            softplus=True,
            joints=joints if limbs else None,
            config=config,
            parts=parts_of(length, batch * blocks, config),
        )
        yield (
            walk,
            {
                **operands,
                "path": jnp.array([k, start, inner_stride, outer_stride], jnp.int32),
                "row_of_block": jnp.full(blocks, k, jnp.int32),
                "limb_walk": jnp.array(order.limb_walk, jnp.int32) if limbs else None,
            },
        )


@functools.partial(jax.custom_vjp, nondiff_argnums=(8,))
def _cross_scan(x, dt, B, C, dt_weight, dt_bias, A, D, static):
    return _forward((x, dt, B, C, dt_weight, dt_bias, A, D), static, save=False)[0]


def _forward(arrays, static, *, save: bool):
    x, (order, config, interpret) = arrays[0], static
    y, boundaries = None, []
    for walk, operands in _directions(arrays, order, config):
        inputs = {**operands, "y_before": y}
        out = forward(walk, inputs, None, jnp.float32, save=save, last=False, interpret=interpret)
        y = out["y"]
        boundaries.append(out.get("boundaries"))
    return cut_channels(y, x.shape[-1], 1).reshape(x.shape), boundaries


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
    launches = zip(_directions(arrays, order, config), order.directions, boundaries, strict=True)
    for (walk, operands), direction, kept in launches:
        limbs = walk.joints is not None
        out = backward(
            walk,
            operands,
            kept,
            dy,
            None,
            by_source[limbs],
            (("u", jnp.float32),),
            first=False,
            interpret=interpret,
        )
        by_source[limbs] = out["du"]
        rows.append([_to_grid(out[name][:, :, 0], direction, x) for name in ("ddt", "dB", "dC")])
        sums.append([out[name] for name in ("dstep_weight", "dbias", "dA", "dD")])

    def grid(gradient):
        return cut_channels(gradient, x.shape[-1], 1).reshape(x.shape)

    dx = None if by_source[False] is None else grid(by_source[False])
    if by_source[True] is not None:
        pull_back = jax.vjp(lambda x: limb_term(x, order), jnp.zeros(x.shape, jnp.float32))[1]
        through_limbs = pull_back(grid(by_source[True]))[0]
        dx = through_limbs if dx is None else dx + through_limbs
    ddt, dB, dC = (jnp.stack(g, 3) for g in zip(*rows, strict=True))
    per_channel = (jnp.stack(g) for g in zip(*sums, strict=True))
    dW, dbias, dA, dD = (cut_channels(g, x.shape[-1], 1) for g in per_channel)
    grads = (dx, ddt, dB, dC, dW.swapaxes(1, 2), dbias, dA.swapaxes(1, 2), dD)
    return tuple(g.astype(a.dtype) for g, a in zip(grads, arrays, strict=True))


def _to_grid(steps, direction: Direction, x):
    """Rearranges (batch, steps, n) in the order of a walk to (batch, frames, joints, n)."""
    steps = jnp.flip(steps, 1) if direction.reverse else steps
    return direction.to_grid(steps, *x.shape[1:3])


_cross_scan.defvjp(_cross_scan_fwd, _cross_scan_bwd)
