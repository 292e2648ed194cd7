"""The recurrence step by step, differentiated by JAX: what every implementation is tested against.

    state_l = exp(delta_l A) state_{l-1} + delta_l B_l u_l,    y_l = <C_l, state_l> + D u_l

(Gu and Dao, "Mamba", 2023, equation 2 with the simplified discretisation of B that their
implementation uses.)
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from selective_scan_jax.elementwise import first_state, skip_and_gate, step_sizes
from selective_scan_jax.operands import ScanOperands


def selective_scan(operands: ScanOperands, *, delta_softplus: bool, reverse: bool):
    """Implements `selective_scan_jax.selective_scan` and returns (y, last_state)."""
    u, delta, A, B, C, D, delta_bias, z, initial_state = operands
    batch, _, channels = u.shape
    groups, states = B.shape[2:]
    A = A.astype(jnp.float32)

    def per_channel(x):  # (batch, groups, states) to (batch, channels, states)
        return jnp.repeat(x.astype(jnp.float32), channels // groups, axis=1)

    def step(state, inputs):
        u_l, delta_l, B_l, C_l = inputs
        decay = jnp.exp(delta_l[..., None] * A)
        state = decay * state + (delta_l * u_l.astype(jnp.float32))[..., None] * per_channel(B_l)
        return state, jnp.sum(state * per_channel(C_l), axis=-1)

    time_major = (u, step_sizes(delta, delta_bias, delta_softplus), B, C)
    last_state, y = jax.lax.scan(
        step,
        first_state(initial_state, batch, channels, states),
        jax.tree.map(lambda x: jnp.swapaxes(x, 0, 1), time_major),
        reverse=reverse,
    )
    return skip_and_gate(jnp.swapaxes(y, 0, 1), u, D, z), last_state
