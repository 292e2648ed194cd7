"""The two public operators: they check their arguments and hand them to an implementation."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from selective_scan_jax import backends
from selective_scan_jax.grid import ScanOrder


def selective_scan(
    u: jax.Array,
    delta: jax.Array,
    A: jax.Array,
    B: jax.Array,
    C: jax.Array,
    D: jax.Array | None = None,
    *,
    delta_bias: jax.Array | None = None,
    delta_softplus: bool = False,
    z: jax.Array | None = None,
    initial_state: jax.Array | None = None,
    return_last_state: bool = False,
    reverse: bool = False,
    implementation: str | None = None,
):
    """The selective scan of Mamba, differentiable in every array argument.

    With delta' = softplus(delta + delta_bias) (either part only if asked for), for each channel:

        state_l = exp(delta'_l A) state_{l-1} + delta'_l B_l u_l
        y_l     = (<C_l, state_l> + D u_l) * silu(z_l)

    (Gu and Dao, "Mamba", 2023; the argument names are those of its implementation, with channels
    last.) The recurrence is computed in float32 whatever the inputs are.

    Args:
      u: (batch, length, channels), the input sequence.
      delta: (batch, length, channels), step sizes.
      A: (channels, state), negative for a decaying state.
      B: (batch, length, groups, state); channel c belongs to group c // (channels / groups).
      C: (batch, length, groups, state).
      D: (channels,), skip term; none if None.
      delta_bias: (channels,), added to delta.
      delta_softplus: apply softplus to delta (after the bias).
      z: (batch, length, channels), gate; none if None.
      initial_state: (batch, channels, state), zeros if None.
      return_last_state: also return the state after the last step.
      reverse: run from the last position to the first; the "last" state is then that after
        position 0. Outputs stay in the places of their inputs.
      implementation: a name from `implementations()`; None takes the fastest that can run.

    Returns:
      y (batch, length, channels) in u's dtype; with `return_last_state` the pair
      (y, last_state (batch, channels, state) float32).

    Raises:
      ValueError: an argument's shape does not fit, or there is no such implementation.
      TypeError: an argument is not an array of real floating-point numbers.
      RuntimeError: the implementation that was asked for cannot run here.
    """
    _check("u", u, ("batch", "length", "channels"), {})
    sizes = dict(zip(("batch", "length", "channels"), u.shape, strict=True))
    if sizes["length"] < 1:
        raise ValueError(f"u: the length must be at least 1, got shape {u.shape}")
    _check("delta", delta, ("batch", "length", "channels"), sizes)
    _check("A", A, ("channels", "state"), sizes)
    sizes["state"] = A.shape[1]
    _check("B", B, ("batch", "length", "groups", "state"), sizes)
    sizes["groups"] = B.shape[2]
    if sizes["groups"] < 1 or sizes["channels"] % sizes["groups"]:
        raise ValueError(
            f"B: the number of groups must divide the number of channels, got {sizes['groups']} "
            f"groups (shape {B.shape}) and {sizes['channels']} channels"
        )
    _check("C", C, ("batch", "length", "groups", "state"), sizes)
    _check("D", D, ("channels",), sizes, optional=True)
    _check("delta_bias", delta_bias, ("channels",), sizes, optional=True)
    _check("z", z, ("batch", "length", "channels"), sizes, optional=True)
    _check("initial_state", initial_state, ("batch", "channels", "state"), sizes, optional=True)

    scan = backends.get_selective_scan(implementation)
    y, last_state = scan(
        *(None if x is None else jnp.asarray(x) for x in (u, delta, A, B, C, D, delta_bias, z)),
        None if initial_state is None else jnp.asarray(initial_state),
        delta_softplus=bool(delta_softplus),
        reverse=bool(reverse),
    )
    return (y, last_state) if return_last_state else y


def cross_scan(
    x: jax.Array,
    dt: jax.Array,
    B: jax.Array,
    C: jax.Array,
    dt_weight: jax.Array,
    dt_bias: jax.Array,
    A: jax.Array,
    D: jax.Array,
    *,
    order: str | ScanOrder = "limbs",
    implementation: str | None = None,
) -> jax.Array:
    """The selective scans of a PoseMamba block along every direction of a grid, added up.

    For each direction k: u_k is x, or `limb_term(x, order)` for the frame-by-frame directions of an
    order with a limb walk; delta_k = softplus(dt_weight_k dt_k + dt_bias_k); then the recurrence of
    `selective_scan` along the direction's path. The outputs are put back to their grid positions
    and added. dt, B and C are projections of u_k, taken position by position in grid order.
    Differentiable in every array argument; float32 inside.

    Args:
      x: (batch, frames, joints, channels).
      dt: (batch, frames, joints, directions, rank), input of the step projection.
      B: (batch, frames, joints, directions, state).
      C: (batch, frames, joints, directions, state).
      dt_weight: (directions, channels, rank), the step projection.
      dt_bias: (directions, channels).
      A: (directions, channels, state), negative.
      D: (directions, channels).
      order: a `ScanOrder` or the name of one; the name `limbs` means Human3.6M's 17 joints.
      implementation: a name from `implementations()`; None takes the fastest that can run.

    Returns:
      (batch, frames, joints, channels) float32.

    Raises:
      ValueError: an argument's shape does not fit, or there is no such order or implementation.
      TypeError: an argument is not an array of real floating-point numbers.
      RuntimeError: the implementation that was asked for cannot run here.
    """
    if isinstance(order, str):
        order = ScanOrder.named(order)
    grid = ("batch", "frames", "joints")
    _check("x", x, (*grid, "channels"), {})
    sizes = dict(zip((*grid, "channels"), x.shape, strict=True))
    if sizes["frames"] < 1 or sizes["joints"] < 1:
        raise ValueError(f"x: needs at least one frame and one joint, got shape {x.shape}")
    if order.limb_walk is not None and len(order.limb_walk) != sizes["joints"]:
        raise ValueError(
            f"x: the order's limb walk is for {len(order.limb_walk)} joints, "
            f"x has {sizes['joints']} (shape {x.shape})"
        )
    sizes["directions"] = len(order.directions)
    _check("dt", dt, (*grid, "directions", "rank"), sizes)
    sizes["rank"] = dt.shape[-1]
    _check("B", B, (*grid, "directions", "state"), sizes)
    sizes["state"] = B.shape[-1]
    _check("C", C, (*grid, "directions", "state"), sizes)
    _check("dt_weight", dt_weight, ("directions", "channels", "rank"), sizes)
    _check("dt_bias", dt_bias, ("directions", "channels"), sizes)
    _check("A", A, ("directions", "channels", "state"), sizes)
    _check("D", D, ("directions", "channels"), sizes)

    scan = backends.get_cross_scan(implementation)
    arrays = (jnp.asarray(a) for a in (x, dt, B, C, dt_weight, dt_bias, A, D))
    return scan(*arrays, order=order)


def _check(name: str, x, dims: tuple[str, ...], sizes: dict[str, int], *, optional: bool = False):
    """Raises unless x is a real floating-point array whose dimensions agree with `sizes`."""
    if x is None and optional:
        return
    if not hasattr(x, "shape") or not hasattr(x, "dtype"):
        raise TypeError(f"{name}: expected an array of shape ({', '.join(dims)}), got {type(x)}")
    if not jnp.issubdtype(x.dtype, jnp.floating):
        raise TypeError(f"{name}: expected real floating-point numbers, got dtype {x.dtype}")
    fits = len(x.shape) == len(dims) and all(
        sizes.get(dim, size) == size for dim, size in zip(dims, x.shape, strict=True)
    )
    if not fits:
        expected = ", ".join(f"{dim}={sizes[dim]}" if dim in sizes else dim for dim in dims)
        raise ValueError(f"{name}: expected shape ({expected}), got {tuple(x.shape)}")
