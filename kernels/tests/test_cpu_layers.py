"""The native layers around a block's scan against the same layers in plain JAX."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from selective_scan_jax import cpu
from selective_scan_jax.cpu import call

pytestmark = pytest.mark.skipif(
    call.unavailable_reason() is not None, reason=f"native kernels: {call.unavailable_reason()}"
)

EPS = 1e-5


def norm(x, scale, bias, gate=None):
    mean = jnp.mean(x, -1, keepdims=True)
    variance = jnp.mean(jnp.square(x - mean), -1, keepdims=True)
    y = (x - mean) / jnp.sqrt(variance + EPS) * scale + bias
    return y if gate is None else y * jax.nn.silu(gate)


def conv_silu(x, kernel, bias):
    padded = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    frames, joints = x.shape[1:3]
    y = bias
    for i in range(3):
        for j in range(3):
            y = y + padded[:, i : i + frames, j : j + joints] * kernel[i, j]
    return jax.nn.silu(y)


native_norm = functools.partial(cpu.layer_norm, eps=EPS)
# The native layer, the plain one, and the shapes of what it takes after x (b, f, j, e).
LAYERS = {
    "norm": (native_norm, norm, lambda e: [(e,), (e,)]),
    "gated norm": (native_norm, norm, lambda e: [(e,), (e,), "x"]),
    "convolution": (cpu.depthwise_conv_silu, conv_silu, lambda e: [(3, 3, e), (e,)]),
    "gelu": (cpu.gelu, functools.partial(jax.nn.gelu, approximate=False), lambda e: []),
}
# Several tasks of rows and frames; fewer channels than lanes, and channels and joints left over.
SHAPES = [(2, 21, 17, 40), (1, 1, 1, 3), (3, 35, 1, 19)]


def operands(name, shape):
    rng = np.random.default_rng(0)
    shapes = [shape, *(shape if s == "x" else s for s in LAYERS[name][2](shape[-1]))]
    arrays = [rng.normal(size=s).astype(np.float32) for s in shapes]
    arrays[0] = 3 * arrays[0] + 1
    return arrays, rng.normal(size=shape).astype(np.float32)


def outputs_of(layer, arrays, dy):
    """Returns the layer's output and its gradients by all arrays."""
    y, pull_back = jax.vjp(layer, *arrays)
    return y, *pull_back(dy)


def outputs(name, arrays, dy):
    """Returns `outputs_of` a native layer."""
    return [np.asarray(a) for a in outputs_of(LAYERS[name][0], arrays, dy)]


@functools.cache
def exact_outputs(name, shape):
    arrays, dy = operands(name, shape)
    with jax.enable_x64(True):
        plain = jax.jit(functools.partial(outputs_of, LAYERS[name][1]))
        return [np.asarray(a) for a in plain([np.float64(a) for a in arrays], np.float64(dy))]


@pytest.fixture(params=call.levels())
def level(request):
    before = call.level()
    call.set_level(request.param)
    yield request.param
    call.set_level(before)


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_agrees_with_plain_jax(name, shape, level):
    arrays, dy = operands(name, shape)
    for found, exact in zip(outputs(name, arrays, dy), exact_outputs(name, shape), strict=True):
        np.testing.assert_allclose(found, exact, rtol=0, atol=2e-6 * max(1, np.abs(exact).max()))


@pytest.mark.parametrize("name", LAYERS)
def test_does_not_depend_on_threads(name):
    arrays, dy = operands(name, (2, 40, 17, 24))
    try:
        results = []
        for threads in (1, 3):
            call.set_threads(threads)
            results.append(outputs(name, arrays, dy))
    finally:
        call.set_threads(0)
    for one, three in zip(*results, strict=True):
        np.testing.assert_array_equal(one, three)


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("shape", [(0, 4, 3, 8), (2, 0, 3, 8), (2, 4, 0, 8)], ids=str)
def test_nothing_gives_nothing(name, shape):
    arrays, dy = operands(name, shape)
    y, _, *gradients = outputs(name, arrays, dy)
    assert y.shape == shape and all((g == 0).all() for g in gradients)


def test_gelu_far_from_zero():
    x = np.array([-40, -14, -8, -1e-30, 0, 1e-30, 8, 40, np.inf, np.nan], np.float32)
    y, dx = outputs("gelu", [x], np.ones_like(x))
    np.testing.assert_allclose(y[[2, 3, 5]], [-8 * 6.2209606e-16, -5e-31, 5e-31], rtol=1e-5)
    np.testing.assert_array_equal(y[[0, 4, 6, 7, 8]], [0, 0, 8, 40, np.inf])
    assert abs(y[1]) < 1e-40 and np.isnan(y[9]) and np.isnan(dx[9])
    np.testing.assert_allclose(dx[[3, 4, 5, 6, 7]], [0.5, 0.5, 0.5, 1, 1], rtol=1e-6)


def test_a_wrong_call_is_an_error():
    x, bias = jnp.ones((2, 3, 4, 8)), jnp.ones(8)
    with pytest.raises(Exception, match=r"kernel: expected shape \(3, 3, 8\), got \(3, 8, 3\)"):
        cpu.depthwise_conv_silu(x, jnp.ones((3, 8, 3)), bias)
    with pytest.raises(Exception, match=r"z: expected shape \(2, 3, 4, 8\), got \(24, 8\)"):
        native_norm(x, bias, bias, jnp.ones((24, 8)))


def test_a_second_derivative_is_refused():
    slope = jax.grad(lambda x: cpu.gelu(x).sum())
    with pytest.raises(NotImplementedError, match="second derivatives are not supported"):
        jax.grad(lambda x: slope(x).sum())(jnp.ones((2, 3)))
