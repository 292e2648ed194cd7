"""A scan whose length is split over devices is the scan of one device, and only states travel."""

import functools

import jax
import numpy as np
import pytest
from compiled_text import collectives, with_gradients
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from selective_scan_jax import ScanSharding, selective_scan
from selective_scan_jax.testing import (
    Shape,
    random_operands,
    relative_error,
    selective_scan_float64,
)

short_chunks = pytest.mark.usefixtures("short_chunks")

# Steps so long that a part forgets its start, so short that it does not, and none at all.
SCALES = {"usual": 1.0, "forgets": 60.0, "remembers": 1e-3, "stands still": 0.0}


def make_scan(shape, implementation, sharding=None):
    def scan(arrays):
        return selective_scan(
            **arrays,
            delta_softplus=shape.delta_softplus,
            reverse=shape.reverse,
            return_last_state=True,
            implementation=implementation,
            sharding=sharding,
        )

    return scan


def random_grads(shape):
    rng = np.random.default_rng(1)
    y = rng.normal(size=(shape.batch, shape.length, shape.channels))
    state = rng.normal(size=(shape.batch, shape.channels, shape.state))
    return y.astype(np.float32), state.astype(np.float32)


def assert_is_float64(shape, arrays, outputs, grads, by_arrays):
    *expected, expected_grads = selective_scan_float64(
        arrays, *grads, delta_softplus=shape.delta_softplus, reverse=shape.reverse
    )
    errors = jax.tree.map(relative_error, outputs, tuple(expected))
    assert max(jax.tree.leaves(errors)) < 1e-6, errors
    errors = jax.tree.map(relative_error, by_arrays, expected_grads)
    assert max(jax.tree.leaves(errors)) < 1e-5, errors


@short_chunks
@pytest.mark.parametrize("reverse", [False, True])
def test_eight_parts_are_the_whole(implementation, reverse):
    mesh = Mesh(np.array(jax.devices()[:8]), ("time",))
    shape = Shape(2, 40, 4, 2, 3, reverse=reverse)
    arrays, grads = random_operands(shape), random_grads(shape)
    scan = make_scan(shape, implementation, ScanSharding(mesh, length="time"))

    sequence, whole = NamedSharding(mesh, P(None, "time")), NamedSharding(mesh, P())
    placed = {
        name: jax.device_put(a, sequence if name in ("u", "delta", "B", "C", "z") else whole)
        for name, a in arrays.items()
    }
    placed_grads = jax.device_put(grads, (sequence, whole))
    compiled = with_gradients(scan).lower(placed, placed_grads).compile()
    outputs, by_arrays = compiled(placed, placed_grads)
    assert_is_float64(shape, arrays, outputs, grads, by_arrays)
    assert outputs[0].sharding.spec == by_arrays["u"].sharding.spec == P(None, "time")

    found = collectives(compiled)
    assert set(found) == {"all-gather", "all-reduce"}, found
    # A state is (2, 4, 3): decays and ends, for the states and for their gradients.
    assert {np.prod(s) for s in found["all-gather"]} == {8 * 2 * 4 * 3}, found
    assert len(found["all-gather"]) <= 4
    # Gradients of A, D, delta_bias and the initial state.
    assert max(np.prod(s) for s in found["all-reduce"]) <= 2 * 4 * 3, found


@pytest.mark.parametrize("scale", SCALES)
def test_exact_whatever_the_step_sizes(scale):
    mesh = Mesh(np.array(jax.devices()[:4]), ("time",))
    shape = Shape(1, 28, 3, 1, 4, delta_softplus=False, absent=("delta_bias",))
    arrays, grads = random_operands(shape), random_grads(shape)
    arrays["delta"] *= SCALES[scale]
    run = with_gradients(make_scan(shape, "xla", ScanSharding(mesh, length="time")))
    outputs, by_arrays = run(arrays, grads)
    assert_is_float64(shape, arrays, outputs, grads, by_arrays)


def test_together_with_batch_and_channels():
    mesh = Mesh(np.array(jax.devices()[:8]).reshape(2, 2, 2), ("data", "tensor", "time"))
    sharding = ScanSharding(mesh, "data", "tensor", "time")
    absent = ("initial_state", "z", "D")
    shape = Shape(2, 14, 4, 1, 3, reverse=True, absent=absent)
    arrays, grads = random_operands(shape), random_grads(shape)
    outputs, by_arrays = with_gradients(make_scan(shape, None, sharding))(arrays, grads)
    assert_is_float64(shape, arrays, outputs, grads, by_arrays)


def test_under_remat_and_vmap():
    mesh = Mesh(np.array(jax.devices()[:2]), ("time",))
    shape = Shape(1, 6, 2, 1, 2)
    both = [random_operands(shape, seed) for seed in (0, 1)]
    scan = jax.checkpoint(make_scan(shape, "xla", ScanSharding(mesh, length="time")))
    gradient = jax.grad(lambda arrays: sum(jax.tree.map(lambda x: (x**2).sum(), scan(arrays))))
    one_device = make_scan(shape, "xla")
    expected_gradient = jax.grad(
        lambda arrays: sum(jax.tree.map(lambda x: (x**2).sum(), one_device(arrays)))
    )
    stacked = functools.partial(jax.tree.map, lambda *x: np.stack(x))
    errors = jax.tree.map(
        relative_error,
        jax.jit(jax.vmap(gradient))(stacked(*both)),
        stacked(*map(expected_gradient, both)),
    )
    assert max(jax.tree.leaves(errors)) < 1e-6, errors
