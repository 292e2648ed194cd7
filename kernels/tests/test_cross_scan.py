"""What must hold of a cross scan, for every implementation that runs here."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from selective_scan_jax import Direction, Permutation, ScanOrder, cross_scan, limb_term
from selective_scan_jax.derivative import ALWAYS_DIFFERENTIABLE
from selective_scan_jax.order import SCAN_ORDERS, direction_named
from selective_scan_jax.testing import (
    cross_scan_float64,
    random_cross_operands,
    relative_error,
)

FORWARD, GRADIENT = 1e-6, 1e-5
short_chunks = pytest.mark.usefixtures("short_chunks")

WALK = (0, 0, 1, 4, 3)  # repeats, gaps and a loop

CASES = {
    # Between them every direction of the named orders, which differ in no more than these.
    **{name: (ScanOrder.named(name, limb_walk=WALK), (2, 5, 5)) for name in ("limbs", "bs_bt")},
    "limbs-released": (
        ScanOrder.named("limbs", limb_walk=WALK, limb_gradient="released"),
        (2, 5, 5),
    ),
    "one joint": (ScanOrder.named("limbs", limb_walk=(0,)), (1, 23, 1)),
    "one frame": (ScanOrder.named("bs_bt"), (2, 1, 5)),
    "one direction": (ScanOrder((Direction(False, True, True),)), (1, 5, 3)),
    # On an odd grid: an order of the whole grid, one of the joints in every frame, which takes the
    # limb term, and that backwards, among directions along the axes.
    "permutations": (
        ScanOrder(
            (
                Direction(True),
                Permutation(tuple(np.random.default_rng(7).permutation(15).tolist())),
                Permutation((3, 1, 2, 0, 4)),
                Direction(False, reverse=True),
                Permutation((3, 1, 2, 0, 4), reverse=True),
                Direction(True, True, True),
            ),
            WALK,
        ),
        (2, 3, 5),
    ),
    "permutations only": (
        ScanOrder((Permutation((2, 0, 1)), Permutation((2, 0, 1), reverse=True))),
        (1, 7, 3),
    ),
}
# Runs both what an implementation reads along the grid's axes and what it gathers first.
PERMUTED = "permutations"
# The same in two directions, for what runs on several devices: an interpreter takes them in turn.
SHARDED = (
    ScanOrder((Direction(True), Permutation((3, 1, 2, 0, 4), reverse=True)), WALK),
    CASES[PERMUTED][1],
)


@functools.cache
def compiled(order, implementation):
    """Makes one program for all tests of an order, since compiling it is most of what they take."""

    def run(arrays, grad_y):
        y, pull_back = jax.vjp(
            lambda *a: cross_scan(*a, order=order, implementation=implementation), *arrays
        )
        return y, pull_back(grad_y)

    return jax.jit(run)


def outputs_and_gradients(arrays, grad_y, order, implementation):
    return compiled(order, implementation)(arrays, grad_y)


def assert_close(actual, expected, tolerance=GRADIENT):
    errors = jax.tree.map(relative_error, actual, expected)
    assert max(jax.tree.leaves(errors)) < tolerance, errors


def operands(order, grid, seed=0):
    arrays = random_cross_operands(*grid, 6, len(order.directions), 4, 3, seed)
    grad_y = np.random.default_rng(seed + 1).normal(size=arrays[0].shape).astype(np.float32)
    return arrays, grad_y


@short_chunks
@pytest.mark.parametrize("case", CASES)
def test_matches_float64(implementation, case):
    order, grid = CASES[case]
    arrays, grad_y = operands(order, grid)
    y, grads = outputs_and_gradients(arrays, grad_y, order, implementation)
    expected, expected_grads = cross_scan_float64(arrays, grad_y, order)
    assert_close(y, expected, FORWARD)
    assert_close(list(grads), expected_grads)


def test_human36m_grid_in_full_chunks(implementation):
    order = ScanOrder.named("limbs")
    arrays, grad_y = operands(order, (1, 3, 17))
    y, grads = outputs_and_gradients(arrays, grad_y, order, implementation)
    expected, expected_grads = cross_scan_float64(arrays, grad_y, order)
    assert_close(y, expected, FORWARD)
    assert_close(list(grads), expected_grads)


@short_chunks
def test_vmap_and_remat(implementation):
    order, grid = CASES[PERMUTED]
    two = [operands(order, grid, seed) for seed in (0, 5)]
    stacked = jax.tree.map(lambda *x: np.stack(x), *two)

    def gradients(arrays, grad_y):
        f = jax.checkpoint(lambda *a: cross_scan(*a, order=order, implementation=implementation))
        return jax.vjp(f, *arrays)[1](grad_y)

    expected = [outputs_and_gradients(*x, order, implementation)[1] for x in two]
    expected = jax.tree.map(lambda *x: np.stack(x), *expected)
    assert_close(jax.jit(jax.vmap(gradients))(*stacked), expected)


@short_chunks
def test_bfloat16_inputs(implementation):
    order, grid = CASES[PERMUTED]
    arrays, grad_y = operands(order, grid)
    low = tuple(jnp.asarray(a, jnp.bfloat16) for a in arrays)
    high = tuple(a.astype(jnp.float32) for a in low)
    y, grads = outputs_and_gradients(low, grad_y, order, implementation)
    expected, expected_grads = outputs_and_gradients(high, grad_y, order, implementation)
    assert y.dtype == jnp.float32
    assert all(g.dtype == jnp.bfloat16 for g in grads)
    # x is doubled up in float32 only after its limb term, so y is as exact as in float32.
    assert_close(y, expected, 1e-6)
    assert_close([g.astype(jnp.float32) for g in grads], list(expected_grads), 2**-8)


@short_chunks
@pytest.mark.parametrize("how", ["shard_map", "jit"])
def test_sharded_over_batch_and_channels(implementation, how):
    order, grid = SHARDED
    arrays, grad_y = operands(order, grid)
    mesh = Mesh(np.array(jax.devices()[:4]).reshape(2, 2), ("data", "model"))
    x, rows, per_channel = P("data", None, None, "model"), P("data"), P(None, "model")
    specs = (x, rows, rows, rows, per_channel, per_channel, per_channel, per_channel)

    def run(*a):
        return cross_scan(*a, order=order, implementation=implementation)

    sharded = run
    if how == "shard_map":
        sharded = jax.shard_map(run, mesh=mesh, in_specs=specs, out_specs=x, check_vma=False)
    placed = tuple(
        jax.device_put(a, NamedSharding(mesh, s)) for a, s in zip(arrays, specs, strict=True)
    )
    pull_back = jax.jit(lambda a, g: (sharded(*a), jax.vjp(sharded, *a)[1](g)))
    expected = outputs_and_gradients(arrays, grad_y, order, implementation)
    assert_close(pull_back(placed, grad_y), expected)


@short_chunks
def test_the_same_twice_bit_for_bit(implementation):
    order, grid = CASES[PERMUTED]
    arrays, grad_y = operands(order, grid)
    first = outputs_and_gradients(arrays, grad_y, order, implementation)
    second = outputs_and_gradients(arrays, grad_y, order, implementation)
    jax.tree.map(np.testing.assert_array_equal, first, second)


@pytest.mark.parametrize("case", ["limbs", PERMUTED])
def test_no_clips_give_no_outputs_and_zero_gradients_of_parameters(implementation, case):
    order, (_, *grid) = CASES[case]
    arrays, grad_y = operands(order, (0, *grid))
    y, grads = outputs_and_gradients(arrays, grad_y, order, implementation)
    assert y.shape == (0, *grid, 6) and y.dtype == jnp.float32
    for gradient, array in zip(grads, arrays, strict=True):
        np.testing.assert_array_equal(gradient, np.zeros_like(array))


@short_chunks
def test_second_derivatives_are_there_or_refused_in_words(implementation):
    order = ScanOrder.named("limbs", limb_walk=(0, 0))
    (x, *others), _ = operands(order, (1, 1, 2))

    def loss(x):
        return jnp.sum(cross_scan(x, *others, order=order, implementation=implementation) ** 2)

    twice = jax.grad(lambda x: jnp.sum(jax.grad(loss)(x) ** 2))
    if implementation in ALWAYS_DIFFERENTIABLE:
        assert np.isfinite(twice(x)).all()
        return
    message = f"cross_scan, implementation '{implementation}': second derivatives are not supported"
    with pytest.raises(NotImplementedError, match=message):
        twice(x)


@pytest.mark.parametrize("direction", [
    *(Direction(by, inner, reverse)
      for by in (True, False) for inner in (True, False) for reverse in (True, False)),
    Permutation((2, 0, 1), reverse=True), Permutation((4, 2, 0, 5, 3, 1)),
    Permutation((3, 7, 11, 0, 8, 4, 1, 9, 5, 2, 10, 6), reverse=True),
])  # fmt: skip
def test_paths_visit_every_position_once(direction):
    frames, joints = 4, 3
    path, inverse = direction.path(frames, joints), direction.inverse_path(frames, joints)
    np.testing.assert_array_equal(np.sort(path), np.arange(12))
    np.testing.assert_array_equal(path[inverse], np.arange(12))
    grid = np.arange(12).reshape(1, frames, joints)
    sequence = np.asarray(direction.to_sequence(jnp.asarray(grid)))[0]
    np.testing.assert_array_equal(sequence[::-1] if direction.reverse else sequence, path)
    back = direction.to_grid(direction.to_sequence(jnp.asarray(grid)), frames, joints)
    np.testing.assert_array_equal(back, grid)


def test_permutations_repeat_and_follow_the_limb_term():
    swap, across = Permutation((1, 0)), Permutation((2, 0, 3, 1))
    assert swap.path(3, 2).tolist() == [1, 0, 3, 2, 5, 4]
    assert across.path(4, 2).tolist() == [2, 0, 3, 1, 6, 4, 7, 5]
    order = ScanOrder((swap, across, Permutation((3, 2, 0, 1))), limb_walk=(0, 0))
    assert [order.takes_limb_term(k) for k in range(3)] == [True, False, True]


def test_direction_names():
    assert direction_named("frames") == Direction(True)
    assert direction_named("joints-inner-reverse") == Direction(False, True, True)
    assert direction_named("permutation1-reverse", [(0,), (1, 0)]) == Permutation((1, 0), True)
    for name in ("limbs", "frames-reverse-inner", "frames-inner-inner", "permutation2", "",
                 "permutation0-inner"):  # fmt: skip
        with pytest.raises(ValueError, match=r"expected one of frames, joints, permutation0, "):
            direction_named(name, [(0,), (1, 0)])


def test_named_paths():
    paths = {
        name: [d.path(2, 3).tolist() for d in ScanOrder.named(name).directions]
        for name in SCAN_ORDERS
    }
    frames, joints = [0, 1, 2, 3, 4, 5], [0, 3, 1, 4, 2, 5]
    frames_inner, joints_inner = [2, 1, 0, 5, 4, 3], [3, 0, 4, 1, 5, 2]
    assert paths["limbs"] == paths["global"] == [frames, joints, frames[::-1], joints[::-1]]
    assert paths["fs_ft"] == [frames, joints] * 2
    assert paths["bs_ft"] == [frames_inner, joints] * 2
    assert paths["fs_bt"] == [frames, joints_inner] * 2
    assert paths["bs_bt"] == [frames_inner, joints_inner] * 2


def test_limb_term_and_its_two_gradients():
    x = jnp.asarray(np.random.default_rng(0).normal(size=(2, 3, 5, 4)), jnp.float32)
    weight = jnp.asarray(np.random.default_rng(1).normal(size=x.shape), jnp.float32)
    exact = ScanOrder.named("limbs", limb_walk=WALK)
    released = ScanOrder.named("limbs", limb_walk=WALK, limb_gradient="released")
    plain = x + x[:, :, list(WALK)]
    np.testing.assert_array_equal(limb_term(x, exact), plain)
    np.testing.assert_array_equal(limb_term(x, released), plain)
    np.testing.assert_array_equal(limb_term(x, ScanOrder.named("global")), x)
    by_autodiff = jax.grad(lambda x: jnp.sum((x + x[:, :, list(WALK)]) * weight))(x)
    gradient = {o: jax.grad(lambda x, o=o: jnp.sum(limb_term(x, o) * weight))(x)
                for o in (exact, released)}  # fmt: skip
    np.testing.assert_allclose(gradient[exact], by_autodiff, rtol=1e-6)
    np.testing.assert_array_equal(gradient[released], weight)
