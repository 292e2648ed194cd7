"""What tests and benchmarks of the scan share: shapes, random operands, float64 evaluations.

The evaluations are plain NumPy, one step at a time, with gradients written out by hand, and know
nothing of the implementations they judge.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable

import jax
import numpy as np

from selective_scan_jax.operands import CrossScanOperands
from selective_scan_jax.order import ScanOrder

# Set to 0, it has tests compile as for users, which takes longer.
OPTIMIZATIONS = "JAX_DISABLE_MOST_OPTIMIZATIONS"


def set_up_tests() -> None:
    """Sets up JAX for tests where the environment says nothing; call it before JAX has devices.

    They are eight virtual CPU devices, so that sharded code is exercised on any machine, and
    compiling for them is quick (see `compile_quickly`).
    """
    os.environ.setdefault("XLA_FLAGS", "--xla_force_host_platform_device_count=8")
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    jax.config.update("jax_platforms", os.environ["JAX_PLATFORMS"])  # Read on import already.
    if OPTIMIZATIONS not in os.environ and jax.__version_info__ < (0, 11):
        # Half of compiling a scan is generating the code of fusions the newer way, the only one of
        # later releases. XLA ends a process for a flag that it does not know, as the one in libtpu
        # does for this; JAX's own reads flags when it makes its devices.
        flags = os.environ["XLA_FLAGS"]
        os.environ["XLA_FLAGS"] = f"{flags} --xla_cpu_use_fusion_emitters=false"
        jax.devices()
        os.environ["XLA_FLAGS"] = flags


def compile_quickly(quickly: bool) -> None:
    """Has JAX compile from now on for the compiler's time rather than the program's, or as usual.

    Compiling is most of what tests take. Where the environment sets `OPTIMIZATIONS`, nothing is
    compiled quickly: so CI tests the wheels, and with them the numbers that users get.
    """
    quickly = quickly and OPTIMIZATIONS not in os.environ
    jax.config.update("jax_disable_most_optimizations", quickly)


@dataclasses.dataclass(frozen=True)
class Shape:
    """Sizes of one selective scan and the options it is tried with."""

    batch: int
    length: int
    channels: int
    groups: int
    state: int
    reverse: bool = False
    delta_softplus: bool = True
    absent: tuple[str, ...] = ()  # of D, delta_bias, z, initial_state

    def operand_shapes(self) -> dict[str, tuple[int, ...]]:
        """Returns the shape of every operand of `selective_scan` that is not absent, by name."""
        sequence = (self.batch, self.length, self.channels)
        per_group = (self.batch, self.length, self.groups, self.state)
        per_state = (self.channels, self.state)
        shapes = {"u": sequence, "delta": sequence, "A": per_state, "B": per_group, "C": per_group}
        shapes |= {"D": (self.channels,), "delta_bias": (self.channels,), "z": sequence}
        shapes |= {"initial_state": (self.batch, *per_state)}
        return {name: shape for name, shape in shapes.items() if name not in self.absent}

    def __str__(self):
        sizes = f"b{self.batch}-l{self.length}-c{self.channels}-g{self.groups}-n{self.state}"
        return sizes + ("-reverse" if self.reverse else "")


# Odd, prime and unit lengths on purpose: chunked implementations go wrong at the ends.
SHAPES = (
    Shape(2, 1, 4, 1, 1),
    Shape(1, 7, 8, 4, 16, reverse=True),
    Shape(2, 67, 8, 2, 8, reverse=True),
    Shape(1, 101, 6, 1, 64, absent=("z", "initial_state")),
    Shape(2, 85, 12, 4, 16, absent=("z",)),
    Shape(2, 40, 5, 1, 1, reverse=True, delta_softplus=False, absent=("D", "delta_bias", "z")),
    Shape(1, 4131, 4, 1, 16, absent=("z", "initial_state")),
)


@dataclasses.dataclass(frozen=True)
class BlockShape:
    """Sizes of the cross scan of one PoseMamba block."""

    batch: int
    frames: int
    joints: int
    channels: int
    directions: int
    state: int
    rank: int

    @property
    def selective(self) -> Shape:
        """Describes the same work as one selective scan, a group of channels for each direction."""
        return Shape(
            self.batch,
            self.frames * self.joints,
            self.directions * self.channels,
            self.directions,
            self.state,
            absent=("z", "initial_state"),
        )

    @property
    def state_steps(self) -> int:
        """Counts the states that are advanced by a step: of all positions, directions and
        channels.
        """
        shape = self.selective
        return shape.batch * shape.length * shape.channels * shape.state

    def operand_shapes(self) -> CrossScanOperands:
        """Returns the shape of every operand of `cross_scan`."""
        grid = (self.batch, self.frames, self.joints)
        rows = (*grid, self.directions)
        per_channel = (self.directions, self.channels)
        return CrossScanOperands(
            x=(*grid, self.channels),
            dt=(*rows, self.rank),
            B=(*rows, self.state),
            C=(*rows, self.state),
            dt_weight=(*per_channel, self.rank),
            dt_bias=per_channel,
            A=(*per_channel, self.state),
            D=per_channel,
        )


# The scan of one block of PoseMamba-B on one clip, and the same as one selective scan.
REFERENCE_BLOCK = BlockShape(1, 243, 17, 256, 4, 16, 8)
REFERENCE_SHAPE = REFERENCE_BLOCK.selective


def random_operands(shape: Shape, seed: int = 0) -> dict[str, np.ndarray]:
    """Draws float32 arguments of `selective_scan` by name, decays of the size that a model has."""
    rng = np.random.default_rng(seed)
    sequence = (shape.batch, shape.length, shape.channels)
    per_group = (shape.batch, shape.length, shape.groups, shape.state)
    if shape.delta_softplus:
        delta, delta_bias = rng.normal(size=sequence), rng.normal(size=shape.channels) - 2
    else:  # the step sizes have to be positive as they come
        delta, delta_bias = rng.uniform(0, 1, sequence), rng.uniform(0, 1, shape.channels)
    operands = {
        "u": rng.normal(size=sequence),
        "delta": delta,
        "A": -np.exp(rng.normal(size=(shape.channels, shape.state))),
        "B": rng.normal(size=per_group),
        "C": rng.normal(size=per_group),
        "D": rng.normal(size=shape.channels),
        "delta_bias": delta_bias,
        "z": rng.normal(size=sequence),
        "initial_state": rng.normal(size=(shape.batch, shape.channels, shape.state)),
    }
    return {k: v.astype(np.float32) for k, v in operands.items() if k not in shape.absent}


def random_cross_operands(batch, frames, joints, channels, directions, state, rank, seed=0):
    """Draws float32 operands of a `cross_scan`, decays of the size that a model has."""
    rng = np.random.default_rng(seed)
    grid = (batch, frames, joints)
    arrays = (
        rng.normal(size=(*grid, channels)),
        rng.normal(size=(*grid, directions, rank)),
        rng.normal(size=(*grid, directions, state)),
        rng.normal(size=(*grid, directions, state)),
        rng.uniform(-1, 1, size=(directions, channels, rank)) * rank**-0.5,
        rng.normal(size=(directions, channels)) - 2,
        -np.exp(rng.normal(size=(directions, channels, state))),
        rng.normal(size=(directions, channels)),
    )
    return CrossScanOperands(*(a.astype(np.float32) for a in arrays))


def initial_cross_operands(block: BlockShape, seed: int = 0) -> CrossScanOperands:
    """Draws float32 operands with step sizes and decays as at the start of training."""
    operands = random_cross_operands(*dataclasses.astuple(block), seed)
    A = np.broadcast_to(-np.arange(1, block.state + 1, dtype=np.float32), operands.A.shape)
    return operands._replace(dt_bias=_initial_bias(operands.dt_bias.shape), A=A)


def initial_operands(shape: Shape, seed: int = 0) -> dict[str, np.ndarray]:
    """Draws float32 arguments of `selective_scan` by name, as at the start of training."""
    operands = random_operands(shape, seed)
    operands["delta_bias"] = _initial_bias(operands["delta_bias"].shape)
    operands["delta"] *= 0.5
    operands["A"][:] = -np.arange(1, shape.state + 1)
    return operands


def _initial_bias(shape: tuple[int, ...]) -> np.ndarray:
    """Draws what softplus takes to steps of 1e-3 to 1e-1, evenly over their logarithm."""
    step = np.exp(np.random.default_rng(1).uniform(np.log(1e-3), np.log(1e-1), shape))
    return np.log(np.expm1(step)).astype(np.float32)


def with_gradients(scan: Callable) -> Callable:
    """Makes of a scan a function that also computes its gradients.

    Args:
      scan: takes arrays to one array y.

    Returns:
      A function of the gradient by y and the scan's arrays, which gives y and a gradient for each.
    """

    def both(dy, *arrays):
        y, pull_back = jax.vjp(scan, *arrays)
        return y, pull_back(dy)

    return both


def relative_error(actual, expected) -> float:
    """Computes |actual - expected| / |expected| in the Euclidean norm over the whole tensor."""
    actual, expected = np.asarray(actual, np.float64), np.asarray(expected, np.float64)
    assert actual.shape == expected.shape, (actual.shape, expected.shape)
    if not np.isfinite(actual).all():
        return float("inf")
    return float(np.linalg.norm(actual - expected) / max(np.linalg.norm(expected), 1e-30))


def _sigmoid(x):
    return 1 / (1 + np.exp(-x))


def selective_scan_float64(operands, dy, dlast_state, *, delta_softplus, reverse):
    """Evaluates the recurrence and its gradients in float64.

    Args:
      operands: arguments of `selective_scan` by name.
      dy, dlast_state: gradients of a scalar by the two outputs.

    Returns:
      y, last_state, and a dictionary with the scalar's gradient by every operand.
    """
    x = {name: np.asarray(a, np.float64) for name, a in operands.items()}
    dy, adjoint = np.asarray(dy, np.float64), np.asarray(dlast_state, np.float64)
    u, A = x["u"], x["A"]
    batch, length, channels = u.shape
    groups, n = x["B"].shape[2:]
    raw = x["delta"] + x.get("delta_bias", 0)
    delta = np.logaddexp(raw, 0) if delta_softplus else raw
    B, C = (np.repeat(x[name], channels // groups, axis=2) for name in ("B", "C"))
    order = range(length)[::-1] if reverse else range(length)

    state = x.get("initial_state", np.zeros((batch, channels, n)))
    before, y = np.empty((length, *state.shape)), np.empty_like(u)
    for t in order:
        before[t] = state
        state = np.exp(delta[:, t, :, None] * A) * state
        state = state + (delta[:, t] * u[:, t])[..., None] * B[:, t]
        y[:, t] = (state * C[:, t]).sum(-1)
    last_state = state
    ungated = y + x.get("D", 0) * u
    z = x.get("z")
    gate = 1 if z is None else z * _sigmoid(z)
    dungated = dy * gate

    grads = {name: np.zeros_like(a) for name, a in x.items()}
    ddelta, dB, dC = np.empty_like(u), np.empty_like(B), np.empty_like(C)
    for t in reversed(order):
        decay = np.exp(delta[:, t, :, None] * A)
        after = decay * before[t] + (delta[:, t] * u[:, t])[..., None] * B[:, t]
        adjoint = adjoint + C[:, t] * dungated[:, t, :, None]
        dC[:, t] = after * dungated[:, t, :, None]
        dB[:, t] = adjoint * (delta[:, t] * u[:, t])[..., None]
        carried = adjoint * decay * before[t]
        grads["A"] += (carried * delta[:, t, :, None]).sum(0)
        ddrive = (adjoint * B[:, t]).sum(-1)
        grads["u"][:, t] = ddrive * delta[:, t]
        ddelta[:, t] = ddrive * u[:, t] + (carried * A).sum(-1)
        adjoint = adjoint * decay

    grads["u"] += x.get("D", 0) * dungated
    grads["delta"] = ddelta * (_sigmoid(raw) if delta_softplus else 1)
    for name, full in (("B", dB), ("C", dC)):
        grads[name] = full.reshape(batch, length, groups, -1, n).sum(3)
    for name, value in (
        ("D", (dungated * u).sum((0, 1))),
        ("delta_bias", grads["delta"].sum((0, 1))),
        ("initial_state", adjoint),
        ("z", 0 if z is None else dy * ungated * _sigmoid(z) * (1 + z * (1 - _sigmoid(z)))),
    ):
        if name in grads:
            grads[name] = value
    return ungated * gate, last_state, grads


def cross_scan_float64(arrays, dy, order: ScanOrder):
    """Evaluates the cross scan in float64, one direction after the other.

    Args:
      arrays: arguments of `cross_scan`, in its order.
      dy: gradient of a scalar by its output.

    Returns:
      y and the list of the scalar's gradients by every argument.
    """
    x, dt, B, C, dt_weight, dt_bias, A, D = (np.asarray(a, np.float64) for a in arrays)
    batch, frames, joints, channels = x.shape
    grads = [np.zeros_like(a) for a in (x, dt, B, C, dt_weight, dt_bias, A, D)]
    y = np.zeros_like(x)
    for k, direction in enumerate(order.directions):
        path = direction.path(frames, joints)
        limbs = order.takes_limb_term(k)
        source = x + x[:, :, list(order.limb_walk)] if limbs else x

        def along(a, path=path):
            return a.reshape(batch, frames * joints, *a.shape[3:])[:, path]

        def put_back(a, path=path):
            grid = np.empty_like(a)
            grid[:, path] = a
            return grid.reshape(batch, frames, joints, *a.shape[2:])

        dt_k = along(dt[:, :, :, k])
        operands = {
            "u": along(source),
            "delta": dt_k @ dt_weight[k].T,
            "A": A[k],
            "B": along(B[:, :, :, k])[:, :, None],
            "C": along(C[:, :, :, k])[:, :, None],
            "D": D[k],
            "delta_bias": dt_bias[k],
        }
        no_grad = np.zeros((batch, *A[k].shape))
        y_k, _, g = selective_scan_float64(
            operands, along(np.asarray(dy)), no_grad, delta_softplus=True, reverse=False
        )
        y += put_back(y_k)
        du = put_back(g["u"])
        grads[0] += du
        if limbs and order.limb_gradient == "exact":
            for slot, joint in enumerate(order.limb_walk):
                grads[0][:, :, joint] += du[:, :, slot]
        grads[1][:, :, :, k] = put_back(g["delta"] @ dt_weight[k])
        grads[2][:, :, :, k] = put_back(g["B"][:, :, 0])
        grads[3][:, :, :, k] = put_back(g["C"][:, :, 0])
        grads[4][k] = np.einsum("ble,blr->er", g["delta"], dt_k)
        grads[5][k], grads[6][k], grads[7][k] = g["delta_bias"], g["A"], g["D"]
    return y, grads
