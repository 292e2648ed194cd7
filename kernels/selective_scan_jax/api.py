"""The two public operators: they check their arguments and hand them to an implementation."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp

from selective_scan_jax import backends
from selective_scan_jax.derivative import ALWAYS_DIFFERENTIABLE, differentiate_once
from selective_scan_jax.operands import CrossScanOperands, ScanOperands
from selective_scan_jax.order import ScanOrder
from selective_scan_jax.sharding.mesh import ScanSharding, partition, specs
from selective_scan_jax.sharding.sequence import SequenceScan

_SEQUENCE = ("batch", "length", "channels")
_SELECTIVE = {
    "u": _SEQUENCE,
    "delta": _SEQUENCE,
    "A": ("channels", "state"),
    "B": ("batch", "length", "groups", "state"),
    "C": ("batch", "length", "groups", "state"),
    "D": ("channels",),
    "delta_bias": ("channels",),
    "z": _SEQUENCE,
    "initial_state": ("batch", "channels", "state"),
}
_OPTIONAL = ("D", "delta_bias", "z", "initial_state")
_SELECTIVE_OUT = {"y": _SEQUENCE, "last_state": ("batch", "channels", "state")}

_GRID = ("batch", "frames", "joints")
_CROSS = {
    "x": (*_GRID, "channels"),
    "dt": (*_GRID, "directions", "rank"),
    "B": (*_GRID, "directions", "state"),
    "C": (*_GRID, "directions", "state"),
    "dt_weight": ("directions", "channels", "rank"),
    "dt_bias": ("directions", "channels"),
    "A": ("directions", "channels", "state"),
    "D": ("directions", "channels"),
}
_CROSS_OUT = {"y": (*_GRID, "channels")}


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
    sharding: ScanSharding | None = None,
):
    """Runs the selective scan of Mamba, differentiable (once) in every array argument.

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
      sharding: how the scan is split over a device mesh; None leaves that to the compiler, which
        may gather what a kernel reads.

    Returns:
      y (batch, length, channels) in u's dtype; with `return_last_state` the pair
      (y, last_state (batch, channels, state) float32).

    Raises:
      ValueError: an argument's shape does not fit or does not split evenly, or there is no such
        implementation.
      TypeError: an argument is not an array of real floating-point numbers.
      RuntimeError: the implementation that was asked for cannot run here.
    """
    operands = ScanOperands(u, delta, A, B, C, D, delta_bias, z, initial_state)
    sizes = _check(operands, _SELECTIVE)
    if sizes["length"] < 1:
        raise ValueError(f"u: the length must be at least 1, got shape {u.shape}")
    if sizes["groups"] < 1 or sizes["channels"] % sizes["groups"]:
        raise ValueError(
            f"B: the number of groups must divide the number of channels, got {sizes['groups']} "
            f"groups (shape {B.shape}) and {sizes['channels']} channels"
        )
    name = backends.resolve(implementation)
    options = {"delta_softplus": bool(delta_softplus), "reverse": bool(reverse)}
    run = functools.partial(backends.get_selective_scan(name), **options)
    vjp = functools.partial(jax.vjp, run)
    if sharding is not None and sharding.length is not None:
        run = SequenceScan(backends.get_selective_scan(name), sharding.length, **options)
        vjp = run.vjp
    operands = jax.tree.map(jnp.asarray, operands)
    layouts, dtypes = (_SELECTIVE, _SELECTIVE_OUT), (operands.u.dtype, jnp.float32)
    y, last_state = _call(
        "selective_scan", name, run, vjp, operands, sizes, sharding, layouts, dtypes
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
    sharding: ScanSharding | None = None,
) -> jax.Array:
    """Runs the selective scans of a PoseMamba block along every direction of a grid and adds them
    up.

    For each direction k: u_k is x, or `limb_term(x, order)` for the frame-by-frame directions of an
    order with a limb walk; delta_k = softplus(dt_weight_k dt_k + dt_bias_k); then the recurrence of
    `selective_scan` along the direction's path. The outputs are put back to their grid positions
    and added. dt, B and C are projections of u_k, taken position by position in grid order.
    Differentiable (once) in every array argument; float32 inside.

    Args:
      x: (batch, frames, joints, channels).
      dt: (batch, frames, joints, directions, rank), input of the step projection.
      B: (batch, frames, joints, directions, state).
      C: (batch, frames, joints, directions, state).
      dt_weight: (directions, channels, rank), the step projection.
      dt_bias: (directions, channels).
      A: (directions, channels, state), negative.
      D: (directions, channels).
      order: a `ScanOrder` of as many directions as the operands have, or the name of one of the
        release's, which have four; the name `limbs` means Human3.6M's 17 joints.
      implementation: a name from `implementations()`; None takes the fastest that can run.
      sharding: how the scan is split over a device mesh, by batch and channels; None leaves that to
        the compiler, which may gather what a kernel reads.

    Returns:
      (batch, frames, joints, channels) float32.

    Raises:
      ValueError: an argument's shape does not fit or does not split evenly, the grid does not fit
        the order, or there is no such order or implementation.
      TypeError: an argument is not an array of real floating-point numbers.
      RuntimeError: the implementation that was asked for cannot run here.
    """
    if isinstance(order, str):
        order = ScanOrder.named(order)
    operands = CrossScanOperands(x, dt, B, C, dt_weight, dt_bias, A, D)
    sizes = _check(operands, _CROSS, {"directions": len(order.directions)})
    if sizes["frames"] < 1 or sizes["joints"] < 1:
        raise ValueError(f"x: needs at least one frame and one joint, got shape {x.shape}")
    try:
        order.check_grid(sizes["frames"], sizes["joints"])
    except ValueError as error:
        raise ValueError(f"x: {error} (shape {x.shape})") from None
    if sharding is not None and sharding.length is not None:
        raise ValueError(
            "sharding: a cross scan reads the grid along several paths, its length cannot be "
            f"split; got length={sharding.length!r}, expected None"
        )
    name = backends.resolve(implementation)
    scan = functools.partial(backends.get_cross_scan(name), order=order)

    def run(operands):
        return (scan(operands),)

    vjp = functools.partial(jax.vjp, run)
    operands = jax.tree.map(jnp.asarray, operands)
    layouts, dtypes = (_CROSS, _CROSS_OUT), (jnp.float32,)
    (y,) = _call("cross_scan", name, run, vjp, operands, sizes, sharding, layouts, dtypes)
    return y


def _check(operands, layout, known=()) -> dict[str, int]:
    """Raises unless all are real floating-point arrays whose dimensions agree; gives their sizes.

    Args:
      operands: a named tuple of arrays.
      layout: the names of their dimensions, by operand name.
      known: sizes that are given.
    """
    sizes = dict(known)
    for name, x in operands._asdict().items():
        dims = layout[name]
        if x is None and name in _OPTIONAL:
            continue
        if not hasattr(x, "shape") or not hasattr(x, "dtype"):
            raise TypeError(
                f"{name}: expected an array of shape ({', '.join(dims)}), got {type(x)}"
            )
        if not jnp.issubdtype(x.dtype, jnp.floating):
            raise TypeError(f"{name}: expected real floating-point numbers, got dtype {x.dtype}")
        fits = len(x.shape) == len(dims) and all(
            sizes.get(dim, size) == size for dim, size in zip(dims, x.shape, strict=True)
        )
        if not fits:
            expected = ", ".join(f"{dim}={sizes[dim]}" if dim in sizes else dim for dim in dims)
            raise ValueError(f"{name}: expected shape ({expected}), got {tuple(x.shape)}")
        sizes |= zip(dims, x.shape, strict=True)
    return sizes


def _call(operator, name, run, vjp, operands, sizes, sharding, layouts, dtypes):
    """Runs an implementation on checked operands, on every device's part if they are split.

    Args:
      operator, name: which one and its implementation, for messages.
      run, vjp: as in `differentiate_once`.
      operands: a named tuple of arrays.
      sizes: of the dimensions, by name.
      layouts: names of the operands' and of the outputs' dimensions.
      dtypes: of the outputs.
    """
    if sizes["batch"] == 0:  # a kernel's grid would be empty
        shapes = [[sizes[dim] for dim in dims] for dims in layouts[1].values()]
        return tuple(jnp.zeros(*pair) for pair in zip(shapes, dtypes, strict=True))
    sharding = sharding and sharding.inside()
    if sharding is not None:
        sharding.check(sizes)
        in_specs, out_specs = (specs(sharding, dims, sizes) for dims in layouts)
        in_specs, out_specs = type(operands)(**in_specs), tuple(out_specs.values())
        run, vjp = partition(run, vjp, sharding, in_specs, out_specs)
    elif name in ALWAYS_DIFFERENTIABLE:
        return run(operands)
    what = f"{operator}, implementation {name!r}"
    return differentiate_once(run, vjp, operands, what)
