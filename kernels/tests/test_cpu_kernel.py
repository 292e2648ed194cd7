"""What must hold of the native CPU kernels beyond what every implementation is tested for."""

import functools
import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import selective_scan_jax
from hypothesis import given, settings
from hypothesis import strategies as st
from selective_scan_jax import ScanOrder, cross_scan, selective_scan
from selective_scan_jax.cpu import call as cpu
from selective_scan_jax.order import SCAN_ORDERS
from selective_scan_jax.testing import (
    Shape,
    cross_scan_float64,
    random_cross_operands,
    random_operands,
    relative_error,
    selective_scan_float64,
)

INSTALLED = Path(selective_scan_jax.__file__).parents[1]
UNAVAILABLE = cpu.unavailable_reason()
needs_library = pytest.mark.skipif(UNAVAILABLE is not None, reason=str(UNAVAILABLE))
TOLERANCE = 1e-5


@pytest.fixture(params=cpu.levels() or ["none"])
def level(request):
    """Every instruction set of this machine in turn."""
    before = cpu.level()
    cpu.set_level(request.param)
    yield request.param
    cpu.set_level(before)


def assert_close(actual, expected):
    """Holds every array to its size or, where more, to what its terms would add up to.

    An entry of a parameter's gradient is a sum over batch and steps. Terms of order one may cancel
    in it, and float32 can only be as close to their sum as to them. Entries that
    are no such sums are held to a tenth of a term.
    """
    entries = max(np.size(leaf) for leaf in jax.tree.leaves(expected))

    def error(actual, expected) -> float:
        size = np.sqrt(np.mean(np.square(expected)))
        others = entries / np.size(expected) - 1
        return relative_error(actual, expected) * min(1, size / max(0.1, np.sqrt(others) / 3))

    errors = jax.tree.map(error, actual, expected)
    assert np.max(jax.tree.leaves(errors)) < TOLERANCE, errors  # a NaN fails


def random_like(rng, *shape):
    return rng.normal(size=shape).astype(np.float32)


def check_selective_scan(shape: Shape, seed: int = 0):
    operands, rng = random_operands(shape, seed), np.random.default_rng(seed + 1)
    grads = (
        random_like(rng, shape.batch, shape.length, shape.channels),
        random_like(rng, shape.batch, shape.channels, shape.state),
    )
    options = {"delta_softplus": shape.delta_softplus, "reverse": shape.reverse}
    scan = functools.partial(
        selective_scan, return_last_state=True, implementation="cpu", **options
    )
    outputs, pull_back = jax.vjp(lambda x: scan(**x), operands)
    *expected, expected_grads = selective_scan_float64(operands, *grads, **options)
    assert_close((outputs, pull_back(grads)[0]), (tuple(expected), expected_grads))


def check_cross_scan(order: ScanOrder, *sizes, seed: int = 0):
    operands = random_cross_operands(*sizes, seed=seed)
    grad = random_like(np.random.default_rng(seed + 1), *operands[0].shape)
    scan = functools.partial(cross_scan, order=order, implementation="cpu")
    y, pull_back = jax.vjp(scan, *operands)
    expected, expected_grads = cross_scan_float64(operands, grad, order)
    assert_close((y, list(pull_back(grad))), (expected, expected_grads))


@needs_library
@pytest.mark.parametrize(
    "shape",
    [
        Shape(1, 1, 1, 1, 1),
        Shape(2, 65, 70, 1, 5, reverse=True),
        Shape(1, 130, 51, 3, 16, delta_softplus=False, absent=("z", "delta_bias")),
    ],
    ids=str,
)
def test_selective_scan_at_every_level(level, shape):
    check_selective_scan(shape)


@needs_library
@pytest.mark.parametrize("gradient", ["exact", "released"])
def test_cross_scan_at_every_level(level, gradient):
    check_cross_scan(ScanOrder.named("limbs", limb_gradient=gradient), 2, 5, 17, 70, 4, 16, 5)


@needs_library
def test_exp2_is_within_two_units_in_the_last_place(level):
    rng = np.random.default_rng(0)
    every_exponent = rng.integers(0, 2**32, 400_000, np.uint32).view(np.float32)
    x = np.concatenate(
        [
            every_exponent[~np.isnan(every_exponent)],
            np.linspace(-160, 140, 300_001, dtype=np.float32),
            rng.normal(size=100_000).astype(np.float32) * np.float32(1e-3),
            np.arange(-200, 200, 0.5, np.float32),
        ]
    )
    bounded, full = cpu.exp2(x)
    with np.errstate(over="ignore", under="ignore"):
        exact = np.exp2(x.astype(np.float64))
    tiny, largest = (float(x) for x in (np.finfo(np.float32).tiny, np.finfo(np.float32).max))
    normal = (exact >= tiny) & (exact <= largest)
    unit = np.spacing(exact[normal].astype(np.float32)).astype(np.float64)
    assert (np.abs(full[normal] - exact[normal]) / unit).max() <= 2
    # XLA flushes denormal numbers on a CPU, and so do the kernels.
    assert (full[exact < tiny] <= tiny).all() and (full[exact < tiny * 0.99] == 0).all()
    assert np.isinf(full[exact > largest * 1.001]).all()

    narrow = np.abs(x) < 125
    unit = np.spacing(exact[narrow].astype(np.float32)).astype(np.float64)
    assert (np.abs(bounded[narrow] - exact[narrow]) / unit).max() <= 2


@needs_library
def test_exp2_of_special_values(level):
    x = np.float32([0, -0.0, 1e-45, -1e-45, 1, -1, np.inf, -np.inf, np.nan, 128, -127, 127])
    with np.errstate(all="ignore"):
        expected = np.float32([1, 1, 1, 1, 2, 0.5, np.inf, 0, np.nan, np.inf, 0, 2.0**127])
    np.testing.assert_array_equal(cpu.exp2(x)[1], expected)


EDGES = [
    {"u": ((0, 3, 5), np.nan)},
    {"u": ((0, 3, 5), np.inf)},
    {"delta": ((0, 3, 5), np.nan)},
    {"delta": ((0, 3, 5), np.inf)},
    {"delta": ((0, 3, 5), -np.inf)},
    {"delta": ((0, slice(None), 5), 1e30)},
    {"delta": ((0, slice(None), 5), -200.0)},
    {"delta": ((0, slice(None), 5), 0.0)},
    {"delta": ((0, slice(None), 5), 1e-40)},
    {"A": ((5, 1), -np.inf)},
    {"A": ((5, 1), np.nan)},
    {"A": ((5, 1), 0.0)},
    {"A": ((5, 1), 60.0)},
    {"A": ((5, slice(None)), -500.0)},
    {"B": ((0, 2, 0, 1), np.inf)},
    {"C": ((0, 2, 0, 1), np.nan)},
    {"u": ((0, slice(None), 5), 1e-40)},
]


@functools.cache
def edge_scan(implementation, softplus):
    """Compiles a scan whose operands are its arguments, so that all edges share it."""
    options = {"delta_softplus": softplus, "return_last_state": True}
    return jax.jit(functools.partial(selective_scan, implementation=implementation, **options))


@needs_library
@pytest.mark.parametrize("softplus", [False, True])
@pytest.mark.parametrize(
    "changes", EDGES, ids=lambda c: "-".join(f"{k}={v[1]}" for k, v in c.items())
)
def test_edge_values_give_what_xla_gives(level, changes, softplus):
    operands = random_operands(Shape(1, 7, 20, 1, 3, absent=("delta_bias", "z", "initial_state")))
    for name, (index, value) in changes.items():
        operands[name][index] = value
    actual, expected = (edge_scan(name, softplus)(**operands) for name in ("cpu", "reference"))
    for a, b in zip(actual, expected, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)


@needs_library
def test_a_step_of_size_zero_keeps_the_state_exactly(level):
    shape = Shape(1, 200, 20, 1, 5, delta_softplus=False)
    operands = random_operands(shape) | {"delta": np.zeros((1, 200, 20), np.float32)}
    operands["delta_bias"] = np.zeros(20, np.float32)
    _, state = selective_scan(**operands, return_last_state=True, implementation="cpu")
    np.testing.assert_array_equal(state, operands["initial_state"])


@needs_library
def test_results_do_not_depend_on_the_number_of_threads(level):
    operands = random_cross_operands(3, 19, 17, 150, 4, 8, 3)

    def run(*operands):
        y, pull_back = jax.vjp(functools.partial(cross_scan, implementation="cpu"), *operands)
        return y, pull_back(jnp.cos(y))

    selective = random_operands(Shape(3, 333, 300, 2, 8))

    def run_selective(operands):
        f = functools.partial(selective_scan, delta_softplus=True, implementation="cpu")
        y, pull_back = jax.vjp(lambda x: f(**x), operands)
        return y, pull_back(jnp.cos(y))

    def results(threads):
        cpu.set_threads(threads)
        return jax.tree.leaves((run(*operands), run_selective(selective)))

    try:
        alone = results(1)
        for threads in (2, 3, 8, 0):
            for a, b in zip(alone, results(threads), strict=True):
                np.testing.assert_array_equal(a, b)
    finally:
        cpu.set_threads(0)


@needs_library
@settings(max_examples=25, derandomize=True, deadline=None)
@given(st.data())
def test_any_selective_scan(data):
    draw = data.draw
    groups, state = draw(st.integers(1, 3)), draw(st.integers(1, 17))
    shape = Shape(
        batch=draw(st.integers(1, 3)),
        length=draw(st.sampled_from([1, 2, 3, 63, 64, 65, 129])),
        channels=groups * draw(st.sampled_from([1, 3, 8, 16, 17, 65])),
        groups=groups,
        state=state,
        reverse=draw(st.booleans()),
        delta_softplus=draw(st.booleans()),
        absent=tuple(n for n in ("D", "delta_bias", "z", "initial_state") if draw(st.booleans())),
    )
    if not shape.delta_softplus:
        shape = Shape(**{**vars(shape), "absent": tuple({*shape.absent, "delta_bias"})})
    check_selective_scan(shape, seed=draw(st.integers(0, 99)))


@needs_library
@settings(max_examples=25, derandomize=True, deadline=None)
@given(st.data())
def test_any_cross_scan(data):
    draw = data.draw
    joints = draw(st.integers(1, 18))
    order = ScanOrder.named(
        draw(st.sampled_from(SCAN_ORDERS)),
        limb_walk=tuple(draw(st.integers(0, joints - 1)) for _ in range(joints)),
        limb_gradient=draw(st.sampled_from(["exact", "released"])),
    )
    sizes = (
        draw(st.integers(1, 2)),
        draw(st.sampled_from([1, 2, 7, 13])),
        joints,
        draw(st.sampled_from([1, 5, 16, 31, 70])),
        4,
        draw(st.integers(1, 9)),
        draw(st.integers(1, 5)),
    )
    check_cross_scan(order, *sizes, seed=draw(st.integers(0, 99)))


def call_cross_forward(arrays, y_shape=None, boundaries=(0,), **changes):
    frames, joints = arrays[0].shape[1:3] if arrays[0].ndim == 4 else (5, 17)
    attributes = cpu._attributes(ScanOrder.named("limbs"), frames, joints) | changes
    outputs = [
        jax.ShapeDtypeStruct(shape, jnp.float32)
        for shape in (y_shape or arrays[0].shape, boundaries)
    ]
    call = jax.ffi.ffi_call("selective_scan_cpu_cross_forward", outputs)
    return jax.block_until_ready(call(*arrays, **attributes))


INT64 = functools.partial(np.array, dtype=np.int64)


@needs_library
@pytest.mark.parametrize(
    ("arguments", "changes", "message"),
    [
        (lambda a: (a[0].astype(jnp.bfloat16), *a[1:]), {}, "dtype"),
        (lambda a: (a[0][0], *a[1:]), {}, "x: expected 4 dimensions"),
        (lambda a: (*a[:2], a[2][:, :-1], *a[3:]), {}, "B: expected shape"),
        (lambda a: (*a[:6], a[6][..., :-1], a[7]), {}, "A: expected shape"),
        (lambda a: a[:-1], {}, "number of arguments"),
        (lambda a: a, {"y_shape": (1, 5, 17, 5)}, "y: expected shape"),
        (lambda a: a, {"boundaries": (1, 4, 9, 3, 6)}, "boundaries: expected shape"),
        (lambda a: a, {"paths": INT64([0, 1, 17, 18] * 4)}, "is no path"),
        (lambda a: a, {"paths": INT64([1, 1, 17, 17] * 4)}, "is no path"),
        (lambda a: a, {"paths": INT64([0, 1, 0, 0] * 4)}, "is no path"),
        (lambda a: a, {"paths": INT64([2**62, 2**62, 17, 2**62] * 4)}, "is no path"),
        (lambda a: a, {"paths": INT64([0, 1, 17, 17])}, "4 numbers for each of 4"),
        (lambda a: a, {"limb_walk": INT64([17] * 17)}, "limb_walk"),
        (lambda a: a, {"limb_walk": INT64([0, 1])}, "limb_walk"),
        (lambda a: a, {"takes_limbs": INT64([1])}, "takes_limbs"),
        (lambda a: a, {"limb_walk": np.zeros(17, np.int32)}, "decode"),
    ],
)
def test_wrong_direct_calls_are_refused(arguments, changes, message):
    arrays = tuple(map(jnp.asarray, random_cross_operands(1, 5, 17, 6, 4, 3, 2)))
    assert np.isfinite(call_cross_forward(arrays)[0]).all()
    with pytest.raises(jax.errors.JaxRuntimeError, match=message):
        call_cross_forward(arguments(arrays), **changes)


@needs_library
@pytest.mark.parametrize("name", ["boundaries", "dy", "dlast_state"])
def test_wrong_direct_backward_calls_are_refused(name):
    shape = Shape(1, 70, 6, 1, 3)
    arrays = {k: jnp.asarray(v) for k, v in random_operands(shape).items()}
    order = ("u", "delta", "A", "B", "C", "D", "delta_bias", "z", "initial_state")
    arrays = {k: arrays[k] for k in order}
    more = {
        "boundaries": jnp.zeros((1, 1, 2, 3, 6)),
        "dy": jnp.zeros((1, 70, 6)),
        "dlast_state": jnp.zeros((1, 6, 3)),
    }
    outputs = [jax.ShapeDtypeStruct(a.shape, jnp.float32) for a in arrays.values()]
    call = jax.ffi.ffi_call("selective_scan_cpu_backward", outputs)
    jax.block_until_ready(call(*arrays.values(), *more.values(), softplus=True, reverse=False))
    more[name] = more[name][..., :-1]
    with pytest.raises(jax.errors.JaxRuntimeError, match=name):
        jax.block_until_ready(call(*arrays.values(), *more.values(), softplus=True, reverse=False))


def report(**environment):
    """Asks a fresh process what it says of the `cpu` implementation."""
    code = (
        "from selective_scan_jax.cpu import call as cpu;"
        "print(cpu.unavailable_reason(), cpu.levels()[:1])"
    )
    if environment.get("SELECTIVE_SCAN_CPU_LEVEL"):
        code += "; print(cpu._load()[0] and cpu.level())"
    path = os.pathsep.join([str(INSTALLED), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": path, **environment},
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout


@needs_library
def test_level_can_be_chosen_by_the_environment():
    assert "None" in report(SELECTIVE_SCAN_CPU_LEVEL="baseline")
    assert "baseline" in report(SELECTIVE_SCAN_CPU_LEVEL="baseline").splitlines()[1]
    assert "this machine can run" in report(SELECTIVE_SCAN_CPU_LEVEL="abacus")


def test_a_missing_library_is_reported(tmp_path):
    said = report(SELECTIVE_SCAN_CPU_LIBRARY=str(tmp_path / "missing.so"))
    assert "missing.so" in said and "compiler" in said


def test_a_damaged_library_is_reported(tmp_path):
    (tmp_path / "damaged.so").write_bytes(b"no library")
    assert "cannot be loaded" in report(SELECTIVE_SCAN_CPU_LIBRARY=str(tmp_path / "damaged.so"))


def test_unknown_level_is_refused():
    if UNAVAILABLE is None:
        with pytest.raises(ValueError, match="abacus"):
            cpu.set_level("abacus")
    else:
        with pytest.raises(RuntimeError):
            cpu.set_level("abacus")
