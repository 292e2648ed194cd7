"""What must hold of a selective scan, for every implementation that runs here."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from selective_scan_jax import selective_scan
from selective_scan_jax.derivative import ALWAYS_DIFFERENTIABLE
from selective_scan_jax.testing import (
    SHAPES,
    Shape,
    random_operands,
    relative_error,
    selective_scan_float64,
)

# Ten times tighter than what parity with another float32 implementation asks for.
FORWARD, GRADIENT = 1e-6, 1e-5

# Several short chunks, the last one not full.
SMALL = Shape(2, 19, 8, 2, 4)

short_chunks = pytest.mark.usefixtures("short_chunks")


def scan(operands, shape, implementation, **changes):
    options = {
        "delta_softplus": shape.delta_softplus,
        "reverse": shape.reverse,
        "return_last_state": True,
        "implementation": implementation,
    } | changes
    return selective_scan(**operands, **options)


def with_gradients(f):
    def run(operands, cotangents):
        outputs, pull_back = jax.vjp(f, operands)
        return outputs, pull_back(cotangents)[0]

    return run


@functools.cache
def compiled(shape, implementation):
    """Makes one program for all tests of a shape, since compiling it is most of what they take."""
    return jax.jit(with_gradients(lambda x: scan(x, shape, implementation)))


def outputs_and_gradients(operands, cotangents, shape, implementation):
    return compiled(shape, implementation)(operands, cotangents)


def random_cotangents(shape, seed=1):
    rng = np.random.default_rng(seed)
    y = rng.normal(size=(shape.batch, shape.length, shape.channels))
    state = rng.normal(size=(shape.batch, shape.channels, shape.state))
    return y.astype(np.float32), state.astype(np.float32)


def assert_close(actual, expected, tolerance=GRADIENT):
    errors = jax.tree.map(relative_error, actual, expected)
    assert max(jax.tree.leaves(errors)) < tolerance, errors


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_matches_float64(implementation, shape):
    operands, cotangents = random_operands(shape), random_cotangents(shape)
    outputs, grads = outputs_and_gradients(operands, cotangents, shape, implementation)
    *expected, expected_grads = selective_scan_float64(
        operands, *cotangents, delta_softplus=shape.delta_softplus, reverse=shape.reverse
    )
    assert_close(outputs, tuple(expected), FORWARD)
    assert_close(grads, expected_grads, GRADIENT)


@short_chunks
def test_reverse_is_a_flip(implementation):
    operands = random_operands(SMALL)
    sequences = ("u", "delta", "B", "C", "z")
    flipped = {k: v[:, ::-1] if k in sequences else v for k, v in operands.items()}
    y, state = scan(operands, SMALL, implementation, reverse=True)
    y_flipped, state_flipped = scan(flipped, SMALL, implementation)
    assert_close((y, state), (y_flipped[:, ::-1], state_flipped), FORWARD)


@short_chunks
@pytest.mark.parametrize("reverse", [False, True])
def test_two_halves_chain_through_the_state(implementation, reverse):
    shape = dataclasses.replace(SMALL, reverse=reverse)
    operands, cotangents = random_operands(shape), random_cotangents(shape)
    run = functools.partial(scan, shape=shape, implementation=implementation)

    def in_two(x):
        def part(where):
            return {k: x[k][:, where] for k in ("u", "delta", "B", "C", "z")}

        parts = [part(slice(13)), part(slice(13, None))][:: -1 if reverse else 1]
        first, state = run(x | parts[0])
        second, state = run(x | parts[1] | {"initial_state": state})
        return jnp.concatenate([first, second][:: -1 if reverse else 1], axis=1), state

    whole = outputs_and_gradients(operands, cotangents, shape, implementation)
    assert_close(jax.jit(with_gradients(in_two))(operands, cotangents), whole)


@short_chunks
def test_absent_operands_are_neutral(implementation):
    operands = random_operands(SMALL)
    neutral = dict.fromkeys(("D", "delta_bias", "initial_state"), 0.0)
    with_neutral = {k: v * neutral.get(k, 1) for k, v in operands.items() if k != "z"}
    without = {k: v for k, v in with_neutral.items() if k not in neutral}
    assert_close(
        scan(without, SMALL, implementation), scan(with_neutral, SMALL, implementation), FORWARD
    )


@short_chunks
def test_vmap(implementation):
    three = [(random_operands(SMALL, seed), random_cotangents(SMALL, seed)) for seed in range(3)]
    stacked = jax.tree.map(lambda *x: np.stack(x), *three)

    single = compiled(SMALL, implementation)
    one_by_one = [single(*operands) for operands in three]
    expected = jax.tree.map(lambda *x: np.stack(x), *one_by_one)
    assert_close(jax.jit(jax.vmap(single))(*stacked), expected)


@short_chunks
def test_remat_changes_nothing(implementation):
    operands = random_operands(SMALL)

    def loss(operands, wrap):
        y, state = wrap(lambda x: scan(x, SMALL, implementation))(operands)
        return jnp.sum(jnp.sin(y)) + jnp.sum(state**2)

    plain = jax.jit(jax.grad(lambda x: loss(x, lambda f: f)))(operands)
    remat = jax.jit(jax.grad(lambda x: loss(x, jax.checkpoint)))(operands)
    assert_close(remat, plain, 1e-6)


@short_chunks
@pytest.mark.parametrize("how", ["shard_map", "jit"])
def test_sharded_over_batch_and_channels(implementation, how):
    shape = SMALL
    operands, cotangents = random_operands(shape), random_cotangents(shape)
    mesh = Mesh(np.array(jax.devices()[:4]).reshape(2, 2), ("data", "model"))
    channels, groups = P("data", None, "model"), P("data", None, "model", None)
    per_channel, state = P("model"), P("data", "model")
    specs = {"u": channels, "delta": channels, "z": channels, "B": groups, "C": groups}
    specs |= {"A": per_channel, "D": per_channel, "delta_bias": per_channel, "initial_state": state}

    def run(operands):
        return scan(operands, shape, implementation)

    sharded = run
    if how == "shard_map":
        # The replication check has no rule for foreign calls.
        sharded = jax.shard_map(
            run, mesh=mesh, in_specs=(specs,), out_specs=(channels, state), check_vma=False
        )

    place = {k: jax.device_put(v, NamedSharding(mesh, specs[k])) for k, v in operands.items()}
    expected = outputs_and_gradients(operands, cotangents, shape, implementation)
    assert_close(jax.jit(with_gradients(sharded))(place, cotangents), expected)


@short_chunks
def test_bfloat16_inputs_float32_inside(implementation):
    rounded = {k: jnp.asarray(v, jnp.bfloat16) for k, v in random_operands(SMALL).items()}
    exact = {k: v.astype(jnp.float32) for k, v in rounded.items()}
    cotangents = random_cotangents(SMALL)
    low = (jnp.asarray(cotangents[0], jnp.bfloat16), cotangents[1])
    high = (low[0].astype(jnp.float32), low[1])
    (y, state), grads = outputs_and_gradients(rounded, low, SMALL, implementation)
    expected = outputs_and_gradients(exact, high, SMALL, implementation)
    assert y.dtype == jnp.bfloat16 and state.dtype == jnp.float32
    assert all(g.dtype == jnp.bfloat16 for g in grads.values())
    assert_close(state, expected[0][1], 1e-6)
    as_float = jax.tree.map(lambda x: x.astype(jnp.float32), (y, grads))
    assert_close(as_float, (expected[0][0], expected[1]), 2**-8)


@short_chunks
def test_the_same_twice_bit_for_bit(implementation):
    shape = SMALL
    operands, cotangents = random_operands(shape), random_cotangents(shape)
    first = outputs_and_gradients(operands, cotangents, shape, implementation)
    second = outputs_and_gradients(operands, cotangents, shape, implementation)
    jax.tree.map(np.testing.assert_array_equal, first, second)


def test_no_clips_give_no_outputs_and_zero_gradients_of_parameters(implementation):
    shape = dataclasses.replace(SMALL, batch=0)
    operands = {k: jnp.asarray(v, jnp.bfloat16) for k, v in random_operands(shape).items()}
    y, state = jnp.zeros((0, 19, 8), jnp.bfloat16), jnp.zeros((0, 8, 4), jnp.float32)
    outputs, grads = outputs_and_gradients(operands, (y, state), shape, implementation)
    assert [(x.shape, x.dtype) for x in outputs] == [(x.shape, x.dtype) for x in (y, state)]
    for name, gradient in grads.items():
        np.testing.assert_array_equal(gradient, jnp.zeros_like(operands[name]))


@short_chunks
def test_second_derivatives_are_there_or_refused_in_words(implementation):
    operands = random_operands(Shape(1, 3, 2, 1, 2))

    def loss(u):
        y, _ = scan(operands | {"u": u}, SMALL, implementation)
        return jnp.sum(jnp.sin(y))

    def norm_of_gradient(u):
        return jnp.sum(jax.grad(loss)(u) ** 2)

    u = jnp.asarray(operands["u"])
    if implementation in ALWAYS_DIFFERENTIABLE:
        along, step = jnp.cos(u), 1e-2
        slope = jnp.vdot(jax.grad(norm_of_gradient)(u), along)
        ends = [norm_of_gradient(u + s * along) for s in (step, -step)]
        assert abs((ends[0] - ends[1]) / (2 * step) - slope) < 2e-3 * abs(slope)
        return
    message = f"selective_scan, implementation '{implementation}': second derivatives are not"
    for twice in (
        jax.grad(norm_of_gradient),
        jax.jit(jax.grad(norm_of_gradient)),
        jax.hessian(loss),
    ):
        with pytest.raises(NotImplementedError, match=f"{message}.*'reference'"):
            twice(u)
