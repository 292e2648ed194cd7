"""What must hold of the Mosaic GPU kernels beside what every implementation's tests say.

Numbers come from the interpreter; that the kernels can be made for a GPU is shown by lowering them
for one that is not here. What else a GPU's compiler makes of them is in docs/mosaic_gpu.md.
"""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from selective_scan_jax import (
    ScanOrder,
    Target,
    cross_scan,
    interpreted,
    lowering_for,
    selective_scan,
)
from selective_scan_jax.backends import unavailable_reason
from selective_scan_jax.mosaic_gpu import heuristic as mosaic_gpu_config
from selective_scan_jax.mosaic_gpu import operators as mosaic_gpu
from selective_scan_jax.mosaic_gpu.heuristic import (
    SHARED_MEMORY,
    Config,
    choose_config,
    parts_of,
    shared_memory,
)
from selective_scan_jax.testing import (
    Shape,
    cross_scan_float64,
    random_cross_operands,
    random_operands,
    relative_error,
    selective_scan_float64,
)

HOPPER = Target("gpu", compute_capability=90)
needs_jax = pytest.mark.skipif(
    jax.__version_info__ < mosaic_gpu.MINIMUM_JAX, reason="needs jax 0.11 or later"
)


def test_says_what_it_needs():
    with lowering_for(Target("gpu", compute_capability=80)):
        reason = unavailable_reason("mosaic_gpu")
    if jax.__version_info__ < mosaic_gpu.MINIMUM_JAX:
        assert reason == f"needs jax 0.11 or later, this is {jax.__version__}"
    else:
        assert "Hopper" in reason and "8.0" in reason
        with lowering_for(HOPPER):
            assert unavailable_reason("mosaic_gpu") is None
    assert "gpu only" in unavailable_reason("mosaic_gpu", "cpu")


@pytest.mark.parametrize("rank", [0, 8, 24])
@pytest.mark.parametrize("states", [1, 2, 8, 16, 33, 64, 96])
def test_sizes_fit_into_shared_memory(states, rank):
    shape = {"batch": 1, "length": 67, "channels": 256, "states": states, "rank": rank}
    default = choose_config("mosaic_gpu_cross_scan", shape)
    for config in (default, *default.candidates(shape)):
        assert shared_memory(config, states, rank) <= SHARED_MEMORY


def test_too_many_states_and_odd_sizes_are_refused():
    shape = {"batch": 1, "length": 67, "channels": 256, "states": 256, "rank": 8}
    with pytest.raises(ValueError, match="256 states .* do not fit"):
        choose_config("mosaic_gpu_cross_scan", shape)
    with pytest.raises(ValueError, match="multiple of chunk"):
        Config(segment=16, chunk=3, unroll=8, programs=1)


def arguments(batch, dtype):
    """Returns the shapes of a block's cross scan: 243 frames of 17 joints, 256 channels."""

    def grid(*rest):
        return jax.ShapeDtypeStruct((batch, 243, 17, *rest), dtype)

    def weights(*rest):
        return jax.ShapeDtypeStruct((4, 256, *rest), jnp.float32)

    rows = grid(4, 8), grid(4, 16), grid(4, 16)
    return grid(256), *rows, weights(8), weights(), weights(16), weights()


def lowered(f, *shapes):
    """Lowers a function for a Hopper GPU and returns the program's text."""
    with lowering_for(HOPPER):
        traced = jax.jit(lambda *a: f(*a)).trace(*shapes)
        return traced.lower(lowering_platforms=("cuda",)).as_text()


def gradients(f):
    def both(*arrays):
        y, pull_back = jax.vjp(f, *arrays)
        return pull_back(jax.tree.map(jnp.ones_like, y))

    return both


def float_sizes(text):
    """Elements of every floating-point array of a program, or of a part of its text."""
    shapes = re.findall(r"tensor<([0-9x]+)x(?:f32|bf16)>", text)
    return [np.prod([int(n) for n in shape.split("x")]) for shape in shapes]


@needs_jax
@pytest.mark.parametrize("batch", [1, pytest.param(128, marks=pytest.mark.slow)])
def test_cross_scan_lowers_without_a_stack_of_directions(batch):
    """The kernels read nothing larger than x but the states that were kept. Where programs are few,
    directions run side by side and their outputs are stacked; else these are not either.
    """

    def f(*arrays):
        return cross_scan(*arrays, order="limbs", implementation="mosaic_gpu")

    shapes = arguments(batch, jnp.bfloat16)
    program = lowered(gradients(jax.checkpoint(f)), *shapes)
    calls = re.findall(r"@mosaic_gpu_v2\(.*: \((.*)\) -> ", program)
    x, directions = np.prod(shapes[0].shape), 4 if batch == 1 else 1
    kept = batch * directions * 87 * 16 * 256
    assert calls and max(size for call in calls for size in float_sizes(call)) == max(x, kept)
    assert max(float_sizes(program)) == directions * x


@needs_jax
@pytest.mark.parametrize("dtype", [jnp.float32, pytest.param("bfloat16", marks=pytest.mark.slow)])
def test_selective_scan_lowers(dtype):
    def f(u, delta, A, B, C, D, bias, z, state):
        return selective_scan(
            u, delta, A, B, C, D, delta_bias=bias, delta_softplus=True, z=z, initial_state=state,
            return_last_state=True, reverse=True, implementation="mosaic_gpu",
        )  # fmt: skip

    s = jax.ShapeDtypeStruct
    u, rows = s((1, 4131, 1024), dtype), s((1, 4131, 4, 16), dtype)
    channels, states = s((1024,), jnp.float32), s((1024, 16), jnp.float32)
    state = s((1, 1024, 16), jnp.float32)
    shapes = (u, u, states, rows, rows, channels, channels, u, state)
    # Forward and backward: the states at the starts of the parts of time, and the scan.
    assert lowered(gradients(f), *shapes).count("@mosaic_gpu_v2") == 4


@needs_jax
def test_softplus_and_its_derivative():
    from selective_scan_jax.mosaic_gpu.walk import sigmoid, softplus

    x = np.concatenate([np.linspace(-80, 80, 4001), [-1e-8, 0, 1e-8]]).astype(np.float32)
    exact = x.astype(np.float64)
    value, slope = softplus(x)
    np.testing.assert_allclose(value, np.logaddexp(exact, 0), rtol=1e-6)
    np.testing.assert_allclose(slope, 1 / (1 + np.exp(-exact)), rtol=1e-6)
    np.testing.assert_array_equal(slope, sigmoid(x))


def run_interpreted(shape, operands, cotangents):
    def run(operands, cotangents):
        def scan(x):
            return selective_scan(
                **x,
                delta_softplus=True,
                reverse=shape.reverse,
                return_last_state=True,
                implementation="mosaic_gpu",
            )

        outputs, pull_back = jax.vjp(scan, operands)
        return outputs, pull_back(cotangents)[0]

    with interpreted():
        return jax.block_until_ready(jax.jit(run)(operands, cotangents))


@pytest.mark.parametrize("backward", [False, True])
def test_time_is_cut_where_that_models_faster(backward):
    """Nothing that makes no more programs than wanted models more than 10 % faster."""
    config = Config(segment=48, chunk=3, unroll=6, programs=256)
    cycles = mosaic_gpu_config.CYCLES[backward]
    for programs in (1, 2, 8, 16, 32, 64, 96, 128, 256, 512):
        times = {}
        for per_part in range(87, 0, -1):
            parts = -(-87 // per_part)
            turn = mosaic_gpu_config.turn_cycles(programs * parts, parts, cycles)
            if programs * (parts - 1) < config.programs:
                times[parts] = per_part * turn
        chosen = times[parts_of(4131, programs, config, backward=backward)]
        assert chosen <= 1.1 * min(times.values())
    # A direction alone fills the GPU; a part has at least one segment.
    assert parts_of(4131, 512, config, backward=backward) == 1
    assert parts_of(48, 2, config, backward=backward) == 1


@needs_jax
def test_parts_of_time_and_blocks_of_channels(monkeypatch):
    """Several parts of several segments, an odd end, two blocks per group, channels to fill up."""
    monkeypatch.setattr(mosaic_gpu_config, "SEGMENT", 4)
    monkeypatch.setattr(mosaic_gpu_config, "UNROLL", 2)
    monkeypatch.setattr(mosaic_gpu_config, "PROGRAMS", 32)
    shape = Shape(1, 15, 260, 2, 3, reverse=True)
    operands = random_operands(shape)
    rng = np.random.default_rng(1)
    cotangents = tuple(rng.normal(size=s).astype(np.float32) for s in ((1, 15, 260), (1, 260, 3)))
    outputs, grads = run_interpreted(shape, operands, cotangents)
    *expected, expected_grads = selective_scan_float64(
        operands, *cotangents, delta_softplus=True, reverse=True
    )
    errors = jax.tree.map(relative_error, (outputs, grads), (tuple(expected), expected_grads))
    assert max(jax.tree.leaves(errors)) < 1e-6, errors


@needs_jax
@pytest.mark.parametrize("programs", [1, 64])
def test_directions_one_after_the_other_and_side_by_side(monkeypatch, programs):
    """With one program each they follow one another; with 64 they do not, and time is cut too."""
    monkeypatch.setattr(mosaic_gpu_config, "SEGMENT", 4)
    monkeypatch.setattr(mosaic_gpu_config, "UNROLL", 2)
    monkeypatch.setattr(mosaic_gpu_config, "PROGRAMS", programs)
    order = ScanOrder.named("limbs", limb_walk=(0, 0, 1))
    arrays = random_cross_operands(1, 5, 3, 6, 4, 2, 2)
    dy = np.random.default_rng(1).normal(size=arrays[0].shape).astype(np.float32)

    def run(arrays, dy):
        scan = lambda *a: cross_scan(*a, order=order, implementation="mosaic_gpu")  # noqa: E731
        y, pull_back = jax.vjp(scan, *arrays)
        return y, pull_back(dy)

    with interpreted():
        actual = jax.block_until_ready(jax.jit(run)(arrays, dy))
    y, grads = cross_scan_float64(arrays, dy, order)
    errors = jax.tree.map(relative_error, actual, (y, tuple(grads)))
    assert max(jax.tree.leaves(errors)) < 1e-6, errors


@needs_jax
def test_vmap_and_sharding_lower(monkeypatch):
    monkeypatch.setattr(mosaic_gpu_config, "UNROLL", 1)
    order = ScanOrder.named("limbs", limb_walk=(0, 0, 1))

    def f(*arrays):
        return cross_scan(*arrays, order=order, implementation="mosaic_gpu")

    s = jax.ShapeDtypeStruct
    rows, weights = (2, 4, 3, 4), (4, 8)
    shapes = [(2, 4, 3, 8), (*rows, 2), (*rows, 4), (*rows, 4)]
    shapes += [(*weights, 2), weights, (*weights, 4), weights]
    over_two = [s((2, *shape), jnp.float32) for shape in shapes]
    assert "@mosaic_gpu_v2" in lowered(jax.vmap(gradients(f)), *over_two)

    mesh = jax.sharding.Mesh(np.array(jax.devices()[:2]), ("data",))
    data, everywhere = jax.P("data"), jax.P()
    specs = (data,) * 4 + (everywhere,) * 4
    sharded = jax.shard_map(f, mesh=mesh, in_specs=specs, out_specs=data, check_vma=False)
    program = lowered(gradients(sharded), *(s(shape, jnp.float32) for shape in shapes))
    # Each device scans its half of the batch.
    assert re.search(r"@mosaic_gpu_v2.*tensor<1x12x128xf32>", program)
