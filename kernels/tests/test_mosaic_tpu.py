"""The TPU kernels beyond the tests that all implementations share.

Their numbers come from interpreters; that they compile for TPUs, with how much memory, from the
real compiler, which needs no TPU.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, SingleDeviceSharding
from jax.sharding import PartitionSpec as P
from selective_scan_jax import (
    Direction,
    ScanOrder,
    Target,
    cross_scan,
    interpreted,
    lowering_for,
    selective_scan,
)
from selective_scan_jax.mosaic_tpu import operators as mosaic_tpu
from selective_scan_jax.mosaic_tpu import plan as mosaic_tpu_plan
from selective_scan_jax.testing import (
    Shape,
    cross_scan_float64,
    random_cross_operands,
    random_operands,
    relative_error,
    selective_scan_float64,
)

FORWARD, GRADIENT = 1e-6, 1e-5
WALK = (0, 0, 1, 4, 3)
TWO_WAYS = ScanOrder((Direction(True, reverse=True), Direction(False)), WALK)


def selective(operands, shape):
    return selective_scan(
        **operands,
        delta_softplus=shape.delta_softplus,
        reverse=shape.reverse,
        return_last_state=True,
        implementation="mosaic_tpu",
    )


def cross(arrays, order):
    return cross_scan(*arrays, order=order, implementation="mosaic_tpu")


def with_gradients(f):
    def run(arrays, cotangents):
        outputs, pull_back = jax.vjp(f, arrays)
        return outputs, pull_back(cotangents)[0]

    return run


def assert_close(actual, expected, tolerance):
    errors = jax.tree.map(relative_error, actual, expected)
    assert max(jax.tree.leaves(errors)) < tolerance, errors


def compare_selective(shape):
    operands, rng = random_operands(shape), np.random.default_rng(1)
    cotangents = (
        rng.normal(size=operands["u"].shape).astype(np.float32),
        rng.normal(size=(shape.batch, shape.channels, shape.state)).astype(np.float32),
    )
    with interpreted():
        run = jax.jit(with_gradients(lambda x: selective(x, shape)))
        outputs, grads = run(operands, cotangents)
    *expected, expected_grads = selective_scan_float64(
        operands, *cotangents, delta_softplus=shape.delta_softplus, reverse=shape.reverse
    )
    assert_close(outputs, tuple(expected), FORWARD)
    assert_close(grads, expected_grads, GRADIENT)


def compare_cross(order, frames, channels=6, state=4, batch=1):
    joints = len(order.limb_walk)
    arrays = random_cross_operands(batch, frames, joints, channels, len(order.directions), state, 3)
    grad_y = np.random.default_rng(1).normal(size=arrays[0].shape).astype(np.float32)
    with interpreted():
        y, grads = jax.jit(with_gradients(lambda x: cross(x, order)))(arrays, grad_y)
    expected, expected_grads = cross_scan_float64(arrays, grad_y, order)
    assert_close(y, expected, FORWARD)
    assert_close(list(grads), expected_grads, GRADIENT)


def simulate(monkeypatch, **options):
    """Uses JAX's simulation of a TPU, in which memory that nobody has written holds NaN."""
    from jax.experimental.pallas import tpu as pltpu

    parameters = pltpu.InterpretParams(uninitialized_memory="nan", **options)
    monkeypatch.setattr(mosaic_tpu, "interpreting", lambda: parameters)


@pytest.fixture
def poisoned(monkeypatch):
    """A TPU whose memory holds NaN where nobody has written."""
    simulate(monkeypatch)


@pytest.fixture
def raced(monkeypatch):
    """The same with two cores, which share the parallel axis of a grid, so that what both write, or
    one writes and the other reads, is a race.
    """
    from jax._src.pallas.mosaic.interpret import interpret_pallas_call

    simulate(monkeypatch, detect_races=True, num_cores_or_threads=2)
    kernels, detector = [], interpret_pallas_call.RaceDetectionState

    def recorded(*args, **kwargs):
        kernels.append(detector(*args, **kwargs))
        return kernels[-1]

    monkeypatch.setattr(interpret_pallas_call, "RaceDetectionState", recorded)
    yield
    assert len(kernels) >= 2
    assert not any(kernel.races_found for kernel in kernels)


@pytest.fixture
def unrolled(monkeypatch):
    """Loops unrolled as for the device, if not as far."""
    monkeypatch.setattr(
        mosaic_tpu_plan.Plan,
        "unroll",
        lambda _, steps, most: mosaic_tpu_plan.largest_divisor(steps, min(most, 4)),
    )


@pytest.fixture
def small_blocks(monkeypatch):
    """Blocks of 128 channels and 16 steps: several of each in a small scan."""
    config = mosaic_tpu_plan.TpuConfig(chunk_steps=16, channel_block=128)
    monkeypatch.setattr(mosaic_tpu_plan, "heuristic", lambda *_: config)


@pytest.mark.usefixtures("poisoned")
def test_unwritten_memory_is_not_read():
    compare_selective(Shape(1, 19, 4, 1, 8))


@pytest.mark.slow
@pytest.mark.usefixtures("raced")
def test_no_race_and_no_unwritten_memory():
    compare_selective(Shape(2, 9, 4, 1, 8))


@pytest.mark.slow
@pytest.mark.usefixtures("raced", "small_blocks")
def test_no_race_and_no_unwritten_memory_in_a_cross_scan():
    compare_cross(ScanOrder(TWO_WAYS.directions, (0, 0, 1)), frames=11, batch=2)


@pytest.mark.slow
@pytest.mark.usefixtures("raced")
def test_no_race_and_no_unwritten_memory_in_the_last_chunk():
    compare_selective(Shape(1, 131, 4, 1, 8, reverse=True))


@pytest.mark.slow
@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize("frames", [19, 130])
def test_blocks_of_channels_and_chunks_of_frames(frames):
    compare_cross(ScanOrder(TWO_WAYS.directions[:1], (0, 0)), frames, channels=256, state=8)


@pytest.mark.slow
@pytest.mark.usefixtures("small_blocks")
def test_blocks_of_channels_share_their_group():
    compare_selective(Shape(1, 135, 512, 2, 8))


@pytest.mark.slow
@pytest.mark.usefixtures("unrolled")
def test_unrolled_loops():
    compare_cross(ScanOrder(TWO_WAYS.directions, (0, 0, 1, 2)), frames=9)


@pytest.mark.parametrize(
    ("frames", "lines", "by_frame", "block"),
    [(243, 17, True, 8), (243, 17, False, 128), (5, 5, True, 8), (19, 2, True, 24),
     (9, 1, False, 16), (81, 17, False, 88), (4131, 1, False, 128), (300, 5, True, 16),
     (243, 133, True, 8)],
)  # fmt: skip
def test_chunks_fit_the_path(frames, lines, by_frame, block):
    config = mosaic_tpu_plan.TpuConfig()
    assert mosaic_tpu_plan.frame_block(frames, lines, by_frame, config) == block
    padded = mosaic_tpu_plan.pad_frames(frames)
    for candidate in config.candidates({"joints": lines, "channels": 256}):
        block = mosaic_tpu_plan.frame_block(frames, lines, by_frame, candidate)
        assert block <= padded and block % 8 == 0
        # Neither a chunk's frames nor a line's rows within it lie in two registers of lanes.
        whole = block == padded and block * (lines if by_frame else 1) <= 128
        assert whole or 128 % block == 0


def steps_of(plan, *, backwards=False):
    return [x for i in range(plan.iterations) for x in plan.places(i, backwards=backwards)]


@pytest.mark.parametrize("direction", [
    Direction(by, inner, reverse)
    for by in (True, False) for inner in (True, False) for reverse in (True, False)
])  # fmt: skip
def test_chunks_are_visited_along_the_path(direction):
    frames, joints = 19, 3
    x, small = np.zeros((1, frames, joints, 4)), np.zeros((1, frames, joints, 1, 1))
    options = mosaic_tpu._Options(
        mosaic_tpu_plan.TpuConfig(chunk_steps=24), True, order=ScanOrder((direction,))
    )
    plan = mosaic_tpu._CrossScan((x, small, small, small), options).plan(0)
    path = []
    for visit in range(plan.chunks):
        first, tile = (int(i) for i in plan.place(jnp.int32(visit)))

        for line, frame in steps_of(plan):
            at = tile * plan.frame_block + frame
            path += [at * joints + first + line] if at < frames else []
    np.testing.assert_array_equal(path, direction.path(frames, joints))
    for unrolled in (False, True):
        same = dataclasses.replace(plan, unrolled=unrolled)
        assert steps_of(same) == steps_of(plan)
        assert steps_of(same, backwards=True) == steps_of(plan)[::-1]


@pytest.mark.parametrize(
    "sizes", [{"chunk_steps": 4}, {"chunk_steps": 2048}, {"channel_block": 64}]
)
def test_config_refuses_what_does_not_fit(sizes):
    with pytest.raises(ValueError, match=next(iter(sizes))):
        mosaic_tpu_plan.TpuConfig(**sizes)


@pytest.fixture(scope="module")
def topologies():
    """Descriptions of TPU slices by name, from libtpu, which compiles for them."""
    pytest.importorskip("libtpu")
    from jax.experimental import topologies

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TPU_SKIP_MDS_QUERY", "1")
        patch.setenv("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
        yield lambda name: topologies.get_topology_desc(platform="tpu", topology_name=name)


def compile_for(device, f, *arrays):
    """Compiles `f` for one device that is not here."""
    placed = jax.tree.map(
        lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=SingleDeviceSharding(device)),
        arrays,
    )
    with lowering_for(Target("tpu", device.device_kind)):
        return jax.jit(f).lower(*placed).compile()


def shapes_of(arrays, dtype=None):
    return jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, dtype or a.dtype), arrays)


def cross_shapes(batch, frames, joints, channels, directions, state, rank):
    grid = (batch, frames, joints)
    shapes = [(*grid, channels), *((*grid, directions, n) for n in (rank, state, state))]
    shapes += [(directions, channels, rank), (directions, channels)]
    shapes += [(directions, channels, state), (directions, channels)]
    return tuple(jax.ShapeDtypeStruct(s, jnp.float32) for s in shapes)


def kernels_in(compiled):
    """Calls of Mosaic kernels in a compiled program."""
    return compiled.as_text().count('custom_call_target="tpu_custom_call"')


SLICES = ["v5e:2x2", pytest.param("v6e:2x2", marks=pytest.mark.slow)]


@pytest.mark.parametrize("name", SLICES)
@pytest.mark.parametrize("dtype", [jnp.float32, pytest.param(jnp.bfloat16, marks=pytest.mark.slow)])
def test_selective_scan_compiles_for_a_tpu(topologies, name, dtype):
    shape = Shape(2, 301, 256, 2, 16, reverse=True)
    operands = shapes_of(random_operands(shape), dtype)
    state = jax.ShapeDtypeStruct((2, 256, 16), jnp.float32)
    run = with_gradients(lambda x: selective(x, shape))
    compiled = compile_for(topologies(name).devices[0], run, operands, (operands["u"], state))
    assert kernels_in(compiled) == 2


@pytest.mark.slow
@pytest.mark.parametrize("shape", [
    Shape(1, 1, 4, 1, 1), Shape(2, 7, 300, 1, 64), Shape(1, 4131, 2048, 1, 8),
], ids=str)  # fmt: skip
def test_selective_scan_of_any_size_compiles(topologies, shape):
    operands = shapes_of(random_operands(shape))
    state = jax.ShapeDtypeStruct((shape.batch, shape.channels, shape.state), jnp.float32)
    run = with_gradients(lambda x: selective(x, shape))
    device = topologies("v5e:2x2").devices[0]
    assert kernels_in(compile_for(device, run, operands, (operands["u"], state))) == 2


@pytest.mark.parametrize("name", SLICES)
def test_cross_scan_compiles_for_a_tpu(topologies, name):
    arrays = cross_shapes(1, 27, 5, 128, 2, 16, 4)
    run = with_gradients(lambda x: cross(x, TWO_WAYS))
    compiled = compile_for(topologies(name).devices[0], run, arrays, arrays[0])
    assert kernels_in(compiled) == 4


@pytest.mark.slow
@pytest.mark.parametrize("joints", [1, 37, 133])
def test_cross_scan_of_other_skeletons_compiles(topologies, joints):
    order = ScanOrder(TWO_WAYS.directions, tuple(range(joints)), "released")
    arrays = cross_shapes(1, 243, joints, 384, 2, 16, 4)
    run = with_gradients(lambda x: cross(x, order))
    device = topologies("v5e:2x2").devices[0]
    assert kernels_in(compile_for(device, run, arrays, arrays[0])) == 4


@pytest.mark.slow
@pytest.mark.parametrize("gradients", [False, True], ids=["forward", "gradients"])
def test_memory_is_a_quarter_of_what_stacked_directions_take(topologies, gradients):
    arrays = cross_shapes(16, 243, 17, 256, 4, 16, 8)
    f, cotangents = lambda x: cross(x, ScanOrder.named("limbs")), ()
    if gradients:
        f, cotangents = with_gradients(f), arrays[:1]
    compiled = compile_for(topologies("v5e:2x2").devices[0], f, arrays, *cotangents)
    stacked = 4 * 4 * arrays[0].size  # bytes of x, delta or y, or of its gradient
    count = 6 if gradients else 3
    assert compiled.memory_analysis().temp_size_in_bytes <= count * stacked / 4


def test_sharded_over_a_slice_without_gathering_activations(topologies):
    mesh = Mesh(np.array(topologies("v5e:4x4").devices).reshape(8, 2), ("data", "model"))
    arrays = cross_shapes(8, 27, 5, 256, 2, 16, 4)
    x, rows, per_channel = P("data", None, None, "model"), P("data"), P(None, "model")
    specs = (x, rows, rows, rows, per_channel, per_channel, per_channel, per_channel)
    run = jax.shard_map(
        lambda *a: cross(a, TWO_WAYS), mesh=mesh, in_specs=specs, out_specs=x, check_vma=False
    )
    placed = tuple(
        jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=NamedSharding(mesh, spec))
        for a, spec in zip(arrays, specs, strict=True)
    )
    with lowering_for(Target("tpu", mesh.devices.flat[0].device_kind)):
        compiled = jax.jit(with_gradients(lambda a: run(*a))).lower(placed, placed[0]).compile()
    text = compiled.as_text()
    assert kernels_in(compiled) == 4
    assert "all-gather" not in text and "all-to-all" not in text
    assert "all-reduce" in text  # the sums of the gradients over devices
