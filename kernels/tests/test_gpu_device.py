"""The kernels on a GPU; everything here is skipped where there is none."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from selective_scan_jax import ScanOrder, available, cross_scan, selective_scan
from selective_scan_jax.order import SCAN_ORDERS
from selective_scan_jax.testing import (
    SHAPES,
    cross_scan_float64,
    random_cross_operands,
    random_operands,
    relative_error,
    selective_scan_float64,
)

ON_GPU = jax.default_backend() == "gpu"
IMPLEMENTATIONS = available("gpu") if ON_GPU else ("none",)

gpu = pytest.mark.gpu
on_a_gpu = pytest.mark.skipif(not ON_GPU, reason="needs a GPU; JAX runs on the CPU here")
each = pytest.mark.parametrize("name", IMPLEMENTATIONS)

# An exponential of the hardware is good to two units in the last place.
TOLERANCE = 2e-5


def assert_close(actual, expected, tolerance=TOLERANCE):
    errors = jax.tree.map(relative_error, actual, expected)
    assert max(jax.tree.leaves(errors)) < tolerance, errors


@gpu
@on_a_gpu
@each
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_selective_scan_on_the_device(name, shape):
    operands, rng = random_operands(shape), np.random.default_rng(1)
    grads = (
        rng.normal(size=(shape.batch, shape.length, shape.channels)).astype(np.float32),
        rng.normal(size=(shape.batch, shape.channels, shape.state)).astype(np.float32),
    )
    options = {"delta_softplus": shape.delta_softplus, "reverse": shape.reverse}
    scan = functools.partial(selective_scan, return_last_state=True, implementation=name, **options)

    @jax.jit
    def run(operands, grads):
        outputs, pull_back = jax.vjp(lambda x: scan(**x), operands)
        return outputs, pull_back(grads)[0]

    first, second = run(operands, grads), run(operands, grads)
    *expected, expected_grads = selective_scan_float64(operands, *grads, **options)
    assert_close(first, (tuple(expected), expected_grads))
    jax.tree.map(np.testing.assert_array_equal, first, second)


@gpu
@on_a_gpu
@each
@pytest.mark.parametrize("order", SCAN_ORDERS)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_cross_scan_on_the_device(name, order, dtype):
    order = ScanOrder.named(order)
    arrays = random_cross_operands(2, 11, 17, 80, 4, 16, 5)
    arrays = tuple(jnp.asarray(a, dtype) for a in arrays)
    grad = np.random.default_rng(1).normal(size=arrays[0].shape).astype(np.float32)

    @jax.jit
    def run(arrays, grad):
        scan = functools.partial(cross_scan, order=order, implementation=name)
        y, pull_back = jax.vjp(scan, *arrays)
        return y, list(pull_back(grad))

    (y, grads), again = run(arrays, grad), run(arrays, grad)
    exact = tuple(np.asarray(a, np.float32) for a in arrays)
    expected, expected_grads = cross_scan_float64(exact, grad, order)
    assert_close(y, expected)
    as_float = [g.astype(jnp.float32) for g in grads]
    assert_close(as_float, expected_grads, TOLERANCE if dtype == "float32" else 2**-7)
    jax.tree.map(np.testing.assert_array_equal, (y, grads), again)
