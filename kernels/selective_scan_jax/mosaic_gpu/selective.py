"""The selective scan on the Mosaic GPU kernels: one path, straight through the sequence."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp

from selective_scan_jax.mosaic_gpu.backward import backward
from selective_scan_jax.mosaic_gpu.channels import cut_channels, float32, pad_channels
from selective_scan_jax.mosaic_gpu.forward import forward
from selective_scan_jax.mosaic_gpu.heuristic import CHANNELS, choose_config, parts_of
from selective_scan_jax.mosaic_gpu.walk import Path, Walk


def selective_scan(arrays, delta_softplus: bool, reverse: bool, interpret):
    """Runs the backend's operator; `arrays` in its order, `interpret` as a Pallas kernel takes
    it.
    """
    u, _, A, *_ = arrays
    batch, length, channels = u.shape
    shape = {"batch": batch, "length": length, "channels": channels, "rank": 0}
    config = choose_config("mosaic_gpu_selective_scan", shape | {"states": A.shape[1]})
    return _selective_scan(*arrays, (delta_softplus, reverse, config, interpret))


def _walk(u, B, softplus, config, *, backward: bool = False) -> Walk:
    """Decides how the scan is cut up; fills u up to whole blocks of channels."""
    batch, length, width = u.shape
    _, _, groups, states = B.shape
    blocks = width // CHANNELS
    return Walk(
        length=length,
        states=states,
        paths=(Path(length, limbs=False),),
        directions=1,
        blocks_per_group=blocks // groups,
        softplus=softplus,
        config=config,
        parts=parts_of(length, batch * blocks, config, backward=backward),
    )


def _operands(arrays, reverse: bool):
    """Returns the kernels' operands, and the first state."""
    u, delta, A, B, C, D, delta_bias, z, initial_state = arrays
    pad = functools.partial(pad_channels, groups=B.shape[2])
    path = (0, u.shape[1] - 1, -1, 0, 0) if reverse else (0, 0, 1, 0, 0)
    padded, groups = pad(u), B.shape[2]
    blocks_per_group = padded.shape[-1] // CHANNELS // groups
    operands = {
        "path": jnp.array([path], jnp.int32),
        "group_of_block": jnp.repeat(jnp.arange(groups, dtype=jnp.int32), blocks_per_group)[None],
        "u": padded,
        "delta": pad(delta),
        "A": pad(float32(A).T[None]),
        # Every thread reads all of B and C: to convert them there takes a third more instructions.
        "B": float32(B),
        "C": float32(C),
        "D": None if D is None else pad(float32(D)[None]),
        "bias": None if delta_bias is None else pad(float32(delta_bias)[None]),
        "z": pad(z),
    }
    first = None if initial_state is None else pad(float32(initial_state).swapaxes(1, 2))
    return operands, first


@functools.partial(jax.custom_vjp, nondiff_argnums=(9,))
def _selective_scan(u, delta, A, B, C, D, delta_bias, z, initial_state, static):
    arrays = (u, delta, A, B, C, D, delta_bias, z, initial_state)
    return _forward(arrays, static, save=False)[0]


def _forward(arrays, static, *, save: bool):
    u, _, _, B, *_ = arrays
    softplus, reverse, config, interpret = static
    operands, first = _operands(arrays, reverse)
    walk = _walk(operands["u"], B, softplus, config)
    out = forward(walk, operands, first, u.dtype, save=save, last=True, interpret=interpret)
    cut = functools.partial(cut_channels, channels=u.shape[2], groups=B.shape[2])
    return (cut(out["y"]), cut(out["last_state"]).swapaxes(1, 2)), out.get("boundaries")


def _selective_scan_fwd(u, delta, A, B, C, D, delta_bias, z, initial_state, static):
    arrays = (u, delta, A, B, C, D, delta_bias, z, initial_state)
    outputs, boundaries = _forward(arrays, static, save=True)
    return outputs, (arrays, boundaries)


def _selective_scan_bwd(static, saved, grads):
    arrays, boundaries = saved
    u, delta, A, B, C, D, delta_bias, z, initial_state = arrays
    softplus, reverse, config, interpret = static
    groups = B.shape[2]
    operands, _ = _operands(arrays, reverse)
    types = (("u", u.dtype), ("delta", delta.dtype)) + (() if z is None else (("z", z.dtype),))
    out = backward(
        _walk(operands["u"], B, softplus, config, backward=True),
        operands,
        boundaries,
        pad_channels(grads[0], groups),
        pad_channels(grads[1].swapaxes(1, 2), groups),
        None,
        types,
        first=initial_state is not None,
        interpret=interpret,
    )
    cut = functools.partial(cut_channels, channels=u.shape[2], groups=groups)

    def in_place(x):  # (batch, steps, ...) to positions
        return jnp.flip(x, 1) if reverse else x

    gradients = (
        cut(out["du"]),
        cut(out["ddelta"]),
        cut(out["dA"][0]).T,
        in_place(out["dB"]),
        in_place(out["dC"]),
        None if D is None else cut(out["dD"][0]),
        None if delta_bias is None else cut(out["dbias"][0]),
        None if z is None else cut(out["dz"]),
        None if initial_state is None else cut(out["dfirst"]).swapaxes(1, 2),
    )
    return tuple(
        None if g is None else g.astype(a.dtype) for g, a in zip(gradients, arrays, strict=True)
    )


_selective_scan.defvjp(_selective_scan_fwd, _selective_scan_bwd)
