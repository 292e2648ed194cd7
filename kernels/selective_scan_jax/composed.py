"""A cross scan out of any implementation's selective scan.

Directions become groups: those that share a sense of time run in one call, so the default orders
take two calls. The sequences of all directions are materialised; implementations that read the grid
in place define a `cross_scan` of their own.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp

from selective_scan_jax.grid import ScanOrder, limb_term


def cross_scan(
    selective_scan: Callable,
    x: jax.Array,
    dt: jax.Array,
    B: jax.Array,
    C: jax.Array,
    dt_weight: jax.Array,
    dt_bias: jax.Array,
    A: jax.Array,
    D: jax.Array,
    *,
    order: ScanOrder,
) -> jax.Array:
    """See `selective_scan_jax.cross_scan`; `selective_scan` is a backend module's function."""
    batch, frames, joints, channels = x.shape
    x = x.astype(jnp.float32)
    with_limbs = limb_term(x, order)
    y = jnp.zeros_like(x)
    for reverse in (False, True):
        ks = [k for k, d in enumerate(order.directions) if d.reverse == reverse]
        if not ks:
            continue

        def sequences(per_direction, ks=ks):
            parts = [order.directions[k].to_sequence(per_direction(k)) for k in ks]
            return jnp.stack(parts, axis=2)

        def flat(sequence):
            return sequence.reshape(*sequence.shape[:2], -1)

        u = sequences(lambda k: with_limbs if order.takes_limb_term(k) else x)
        index = jnp.array(ks)
        delta = jnp.einsum(
            "blkr,kcr->blkc",
            sequences(lambda k: dt[:, :, :, k]),
            dt_weight[index],
            precision=jax.lax.Precision.HIGHEST,
            preferred_element_type=jnp.float32,
        )
        ys, _ = selective_scan(
            flat(u),
            flat(delta),
            A[index].reshape(-1, A.shape[-1]),
            sequences(lambda k: B[:, :, :, k]),
            sequences(lambda k: C[:, :, :, k]),
            D[index].reshape(-1),
            dt_bias[index].reshape(-1),
            None,
            None,
            delta_softplus=True,
            reverse=reverse,
        )
        ys = ys.reshape(batch, frames * joints, len(ks), channels)
        for i, k in enumerate(ks):
            y = y + order.directions[k].to_grid(ys[:, :, i], frames, joints)
    return y
