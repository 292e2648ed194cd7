"""What surrounds the recurrence, shared by the implementations: step sizes, skip term, gate."""

from __future__ import annotations

import jax
import jax.numpy as jnp


def step_sizes(delta, delta_bias, delta_softplus: bool) -> jax.Array:
    """Computes float32 softplus(delta + delta_bias), either part optional; delta (...,
    channels).
    """
    delta = delta.astype(jnp.float32)
    if delta_bias is not None:
        delta = delta + delta_bias.astype(jnp.float32)
    return jax.nn.softplus(delta) if delta_softplus else delta


def skip_and_gate(y, u, D, z) -> jax.Array:
    """Computes (y + D * u) * silu(z) in u's dtype, either part optional; y float32 (...,
    channels).
    """
    if D is not None:
        y = y + D.astype(jnp.float32) * u.astype(jnp.float32)
    if z is not None:
        y = y * jax.nn.silu(z.astype(jnp.float32))
    return y.astype(u.dtype)


def first_state(initial_state, batch: int, channels: int, states: int) -> jax.Array:
    """Returns the initial state in float32, zeros if absent; (batch, channels, states)."""
    if initial_state is None:
        return jnp.zeros((batch, channels, states), jnp.float32)
    return initial_state.astype(jnp.float32)
