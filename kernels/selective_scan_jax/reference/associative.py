"""The recurrence as a parallel prefix inside chunks of time, chunks one after the other.

The pairs (decay, input) compose associatively, (a, x) then (b, y) being (a b, b x + y), so
`lax.associative_scan` computes all states of a chunk at once. On a whole sequence it would be slow
to compile and would hold (batch, length, channels, state) several times over; a chunk's states are
recomputed in the backward pass instead, and what stays is the inputs and one state per chunk.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from selective_scan_jax.elementwise import first_state, skip_and_gate, step_sizes
from selective_scan_jax.operands import ScanOperands

CHUNK = 16


def selective_scan(operands: ScanOperands, *, delta_softplus: bool, reverse: bool):
    """Implements `selective_scan_jax.selective_scan` and returns (y, last_state)."""
    u, delta, A, B, C, D, delta_bias, z, initial_state = operands
    batch, length, channels = u.shape
    groups, states = B.shape[2:]
    A = A.astype(jnp.float32).reshape(groups, channels // groups, states)
    state = first_state(initial_state, batch, channels, states).reshape(batch, *A.shape)
    chunk = min(CHUNK, length)
    steps = step_sizes(delta, delta_bias, delta_softplus)

    def chunks(x, tail):  # (batch, length, ...) to (chunks, chunk, batch, *tail)
        # Padding follows the softplus: a step of size zero leaves the state as it is.
        x = jnp.pad(x, ((0, 0), (0, -length % chunk)) + ((0, 0),) * (x.ndim - 2))
        return jnp.swapaxes(x, 0, 1).reshape(-1, chunk, batch, *tail)

    def combine(first, second):
        return first[0] * second[0], second[0] * first[1] + second[1]

    @jax.checkpoint
    def scan_chunk(state, inputs):
        u_c, delta_c, B_c, C_c = (x.astype(jnp.float32) for x in inputs)
        decay = jnp.exp(delta_c[..., None] * A)
        drive = (delta_c * u_c)[..., None] * B_c[..., None, :]
        decays, states_c = jax.lax.associative_scan(combine, (decay, drive), reverse=reverse)
        states_c = states_c + decays * state
        y = jnp.einsum("tbgcn,tbgn->tbgc", states_c, C_c, precision=jax.lax.Precision.HIGHEST)
        return states_c[0 if reverse else -1], y

    per_channel, per_group = A.shape[:2], (groups, states)
    inputs = (chunks(u, per_channel), chunks(steps, per_channel))
    inputs += (chunks(B, per_group), chunks(C, per_group))
    state, y = jax.lax.scan(scan_chunk, state, inputs, reverse=reverse)
    y = jnp.swapaxes(y.reshape(-1, batch, channels)[:length], 0, 1)
    return skip_and_gate(y, u, D, z), state.reshape(batch, channels, states)
