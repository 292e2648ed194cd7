"""The recurrence in chunks of time, compiled by XLA; the default where no kernel is available."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from selective_scan_jax.elementwise import first_state, skip_and_gate, step_sizes

CHUNK = 64


def selective_scan(
    u, delta, A, B, C, D, delta_bias, z, initial_state, *, delta_softplus: bool, reverse: bool
):
    """See `selective_scan_jax.selective_scan`; returns (y, last_state)."""
    batch, length, channels = u.shape
    groups, states = B.shape[2:]
    A = A.astype(jnp.float32).reshape(groups, channels // groups, states).swapaxes(1, 2)
    state = first_state(initial_state, batch, channels, states)
    state = state.reshape(batch, groups, -1, states).swapaxes(2, 3)
    chunk = min(CHUNK, length)

    def chunks(x, tail):  # (batch, length, ...) to (chunks, chunk, batch, *tail)
        x = jnp.pad(x, ((0, 0), (0, -length % chunk)) + ((0, 0),) * (x.ndim - 2))
        return jnp.swapaxes(x, 0, 1).reshape(-1, chunk, batch, *tail)

    def step(state, inputs):
        u_l, delta_l, B_l, C_l = (x.astype(jnp.float32) for x in inputs)
        decay = jnp.exp(delta_l[:, :, None] * A)
        state = decay * state + (delta_l * u_l)[:, :, None] * B_l[..., None]
        return state, jnp.sum(state * C_l[..., None], axis=2)

    @jax.checkpoint
    def scan_chunk(state, inputs):
        return jax.lax.scan(step, state, inputs, reverse=reverse)

    per_channel, per_group = (groups, channels // groups), (groups, states)
    inputs = (
        chunks(u, per_channel),
        chunks(step_sizes(delta, delta_bias, delta_softplus), per_channel),
        chunks(B, per_group),
        chunks(C, per_group),
    )
    state, y = jax.lax.scan(scan_chunk, state, inputs, reverse=reverse)
    y = jnp.swapaxes(y.reshape(-1, batch, channels)[:length], 0, 1)
    state = state.swapaxes(2, 3).reshape(batch, channels, states)
    return skip_and_gate(y, u, D, z), state
