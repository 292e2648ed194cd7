"""A cross scan out of any implementation's selective scan, for what its kernels cannot read.

Directions become groups: those that share a sense of time run in one call, so the default orders
take two calls. The sequences of all directions are materialised; implementations that read the grid
in place define a `cross_scan` of their own, and get here only the permutations of an order.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp

from selective_scan_jax.operands import CrossScanOperands, ScanOperands
from selective_scan_jax.order import Direction, ScanOrder, limb_term


def cross_scan(
    selective_scan: Callable,
    operands: CrossScanOperands,
    *,
    order: ScanOrder,
) -> jax.Array:
    """Makes a cross scan of a backend's `selective_scan`; see `selective_scan_jax.cross_scan`."""
    x, dt, B, C, dt_weight, dt_bias, A, D = operands
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
        one_scan = ScanOperands(
            u=flat(u),
            delta=flat(delta),
            A=A[index].reshape(-1, A.shape[-1]),
            B=sequences(lambda k: B[:, :, :, k]),
            C=sequences(lambda k: C[:, :, :, k]),
            D=D[index].reshape(-1),
            delta_bias=dt_bias[index].reshape(-1),
        )
        ys, _ = selective_scan(one_scan, delta_softplus=True, reverse=reverse)
        ys = ys.reshape(batch, frames * joints, len(ks), channels)
        for i, k in enumerate(ks):
            y = y + order.directions[k].to_grid(ys[:, :, i], frames, joints)
    return y


def split_cross_scan(
    along_axes: Callable,
    selective_scan: Callable,
    operands: CrossScanOperands,
    *,
    order: ScanOrder,
) -> jax.Array:
    """Runs the directions along the grid's axes in one way and its permutations in another.

    Args:
      along_axes: a backend's `cross_scan`, for orders of `Direction`s.
      selective_scan: the same backend's, on which permutations are composed.
      operands: of all directions.
      order: all directions.

    Returns:
      As `selective_scan_jax.cross_scan`; the permutations are added last.
    """
    ks = range(len(order.directions))
    axes = [k for k in ks if isinstance(order.directions[k], Direction)]
    if len(axes) == len(ks):
        return along_axes(operands, order=order)
    permuted = [k for k in ks if k not in axes]
    # The gradient by x is a sum of both parts', taken in float32.
    operands = operands._replace(x=operands.x.astype(jnp.float32))
    y = cross_scan(selective_scan, operands.directions(permuted), order=order.subset(permuted))
    if axes:
        y = along_axes(operands.directions(axes), order=order.subset(axes)) + y
    return y
