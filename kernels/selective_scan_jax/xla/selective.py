"""The recurrence in chunks of time, compiled by XLA; the default where no kernel is available.

A loop over chunks of about 16 steps carries the state; `xla_chunk` has the arithmetic of one chunk.
The forward pass keeps its inputs and the state at the start of every chunk. The backward pass walks
the chunks in the opposite sense, recomputes the states of a chunk from its first one and runs the
adjoint recurrence beside it. Nothing of size (batch, length, channels, state) exists at any time.
Reversal is the order in which chunks and steps are visited; every sum is taken in a fixed order.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from jax import lax

from selective_scan_jax.elementwise import first_state
from selective_scan_jax.operands import ScanOperands
from selective_scan_jax.xla import chunk
from selective_scan_jax.xla.chunk import Chunks, channel_major, state_major, step_sizes
from selective_scan_jax.xla.cross import cross_scan

__all__ = ["cross_scan", "selective_scan"]


def selective_scan(operands: ScanOperands, *, delta_softplus: bool, reverse: bool):
    """Implements `selective_scan_jax.selective_scan` and returns (y, last_state)."""
    batch, _, channels = operands.u.shape
    state = first_state(operands.initial_state, batch, channels, operands.A.shape[1])
    return _scan(operands._replace(initial_state=state), delta_softplus, reverse)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2))
def _scan(operands, delta_softplus, reverse):
    y, last_state, _ = _forward(operands, delta_softplus, reverse)
    return y, last_state


def _scan_fwd(operands, delta_softplus, reverse):
    y, last_state, boundaries = _forward(operands, delta_softplus, reverse)
    return (y, last_state), (operands, boundaries)


def _scan_bwd(delta_softplus, reverse, residuals, grads):
    return (_backward(*residuals, *grads, delta_softplus, reverse),)


_scan.defvjp(_scan_fwd, _scan_bwd)


class _Reader:
    """The operands of a scan, chunk by chunk, in float32 and split into groups."""

    def __init__(self, inputs, delta_softplus: bool, reverse: bool):
        u, delta, A, B, C, D, delta_bias, z, _ = inputs
        self.groups = B.shape[2]
        self.chunks = Chunks(u.shape[1])
        self.delta_softplus, self.reverse = delta_softplus, reverse
        self.A = state_major(A.astype(jnp.float32), self.groups)
        self.D, self.delta_bias = (
            None if x is None else x.astype(jnp.float32).reshape(self.groups, -1)
            for x in (D, delta_bias)
        )
        self.sequences = [self.chunks.pad(x) for x in (u, delta, B, C)]
        self.z = None if z is None else self.chunks.pad(z)

    def take(self, x, i):
        x = self.chunks.take(x, i, self.reverse)
        return x.reshape(*x.shape[:2], self.groups, -1)

    def operands(self, i):
        """Takes u, delta, its derivative by the raw one, B and C of chunk i."""
        u, raw, B, C = (self.take(x, i) for x in self.sequences)
        raw = raw if self.delta_bias is None else raw + self.delta_bias
        inside = self.chunks.inside(i, self.reverse)
        inside = None if inside is None else inside[:, None, None]
        return u, *step_sizes(raw, self.delta_softplus, inside), B, C

    def buffer(self, like):
        shape = (like.shape[0], self.chunks.padded_length, *like.shape[2:])
        return jnp.zeros(shape, like.dtype)

    def put(self, buffer, i, x):
        return self.chunks.put(buffer, i, self.reverse, x)


def _forward(inputs, delta_softplus, reverse):
    reader = _Reader(inputs, delta_softplus, reverse)
    count, D = reader.chunks.count, reader.D
    state = state_major(inputs.initial_state, reader.groups)

    def visit(i, carry):
        state, y, boundaries = carry
        boundaries = lax.dynamic_update_index_in_dim(boundaries, state, i, 0)
        u, delta, _, B, C = reader.operands(i)
        out, state = chunk.forward(state, u, delta, reader.A, B, C)
        if D is not None:
            out = out + D * u
        if reader.z is not None:
            out = out * jax.nn.silu(reader.take(reader.z, i))
        return state, reader.put(y, i, out), boundaries

    boundaries = jnp.zeros((count, *state.shape), jnp.float32)
    carry = (state, reader.buffer(inputs.u), boundaries)
    state, y, boundaries = lax.fori_loop(0, count, visit, carry)
    return reader.chunks.unpad(y), channel_major(state), boundaries


def _backward(inputs, boundaries, dy, dlast_state, delta_softplus, reverse):
    u, delta, A, B, C, D, delta_bias, z, _ = inputs
    reader = _Reader(inputs, delta_softplus, reverse)
    chunks = reader.chunks
    dy = chunks.pad(dy)

    def visit(k, carry):
        adjoint, grads, sums = carry
        i = chunks.count - 1 - k
        u, delta, slope, B, C = reader.operands(i)
        dy_i = reader.take(dy, i)
        if z is not None:
            z_i = reader.take(reader.z, i)
            gate = jax.nn.sigmoid(z_i)
            dout, dy_i = dy_i, dy_i * z_i * gate
        adjoint, du, ddelta, dA, dB, dC, y = chunk.backward(
            boundaries[i], adjoint, u, delta, reader.A, B, C, dy_i, with_y=z is not None
        )
        ddelta = ddelta if slope is None else ddelta * slope
        new = {"u": du, "delta": ddelta, "B": dB, "C": dC}
        sums = {**sums, "A": sums["A"] + dA}
        if D is not None:
            new["u"] = du + reader.D * dy_i
            sums["D"] = sums["D"] + jnp.sum(dy_i * u, axis=1)
        if delta_bias is not None:
            sums["delta_bias"] = sums["delta_bias"] + jnp.sum(ddelta, axis=1)
        if z is not None:
            y = y if D is None else y + reader.D * u
            new["z"] = dout * y * gate * (1 + z_i * (1 - gate))
        return adjoint, {name: reader.put(grads[name], i, x) for name, x in new.items()}, sums

    sequences = {"u": u, "delta": delta, "B": B, "C": C, "z": z}
    grads = {name: reader.buffer(x) for name, x in sequences.items() if x is not None}
    sums = {"A": jnp.zeros((u.shape[0], *reader.A.shape), jnp.float32)}
    for name, x in (("D", D), ("delta_bias", delta_bias)):
        if x is not None:
            sums[name] = jnp.zeros(
                (u.shape[0], reader.groups, x.size // reader.groups), jnp.float32
            )
    carry = (state_major(dlast_state, reader.groups), grads, sums)
    adjoint, grads, sums = lax.fori_loop(0, chunks.count, visit, carry)

    grads = {name: chunks.unpad(x) for name, x in grads.items()}
    grads["A"] = channel_major(sums["A"].sum(0)).astype(A.dtype)
    for name, x in (("D", D), ("delta_bias", delta_bias)):
        if x is not None:
            grads[name] = sums[name].sum(0).reshape(-1).astype(x.dtype)
    return ScanOperands(**grads, initial_state=channel_major(adjoint))
