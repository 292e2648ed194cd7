"""A scan split over a mesh: the numbers of one device, and only sums of gradients travel."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from compiled_text import collectives, with_gradients
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from selective_scan_jax import (
    Direction,
    ScanOrder,
    ScanSharding,
    Target,
    available,
    cross_scan,
    lowering_for,
    selective_scan,
)
from selective_scan_jax.operands import CrossScanOperands
from selective_scan_jax.testing import Shape, random_cross_operands, random_operands, relative_error

AXES = ("data", "fsdp", "tensor")
short_chunks = pytest.mark.usefixtures("short_chunks")

ORDER = ScanOrder((Direction(True), Direction(False, reverse=True)), limb_walk=(0, 0, 1))
CROSS_SPECS = CrossScanOperands(
    P(("data", "fsdp"), None, None, "tensor"),
    *(P(("data", "fsdp")),) * 3,
    *(P(None, "tensor"),) * 4,
)


def make_mesh(*sizes, names=AXES):
    return Mesh(np.array(jax.devices()[: math.prod(sizes)]).reshape(sizes), tuple(names))


def assert_close(actual, expected, tolerance=1e-6):
    errors = jax.tree.map(relative_error, actual, expected)
    assert max(jax.tree.leaves(errors)) < tolerance, errors


def cross(arrays, implementation, sharding=None):
    return cross_scan(*arrays, order=ORDER, implementation=implementation, sharding=sharding)


def place(mesh, arrays, specs):
    return jax.tree.map(lambda a, s: jax.device_put(a, NamedSharding(mesh, s)), arrays, specs)


@short_chunks
def test_cross_scan_over_batch_and_channels(implementation):
    mesh = make_mesh(2, 2, 2)
    sharding = ScanSharding(mesh, ("data", "fsdp"), "tensor")
    arrays = random_cross_operands(4, 5, 3, 6, 2, 2, 1)
    grad_y = np.random.default_rng(1).normal(size=arrays[0].shape).astype(np.float32)
    expected = with_gradients(functools.partial(cross, implementation=implementation))(
        arrays, grad_y
    )
    run = with_gradients(functools.partial(cross, implementation=implementation, sharding=sharding))
    placed = place(mesh, arrays, CROSS_SPECS), place(mesh, grad_y, CROSS_SPECS[0])
    compiled = run.lower(*placed).compile()
    y, grads = compiled(*placed)
    assert_close((y, grads), expected)
    # Results lie where their arrays do.
    assert y.sharding.spec == CROSS_SPECS[0]
    assert [g.sharding.spec for g in grads] == list(CROSS_SPECS)

    # A device's part: 1 of 4 rows, 3 of 6 channels.
    rows, weights = {(1, 5, 3, 2, n) for n in (1, 2)}, {(2, 3, 1), (2, 3), (2, 3, 2)}
    found = collectives(compiled)
    assert set(found) == {"all-reduce"}, found
    assert rows | weights == set(found["all-reduce"])
    # Once each: dt, B and C over channels; four weights over the batch.
    assert len(found["all-reduce"]) == 7


@short_chunks
@pytest.mark.parametrize("groups", [1, 2])
def test_selective_scan_over_batch_and_channels(implementation, groups):
    mesh = make_mesh(2, 2, 2)
    sharding = ScanSharding(mesh, ("fsdp", "data"), "tensor")
    shape = Shape(4, 9, 4, groups, 3, reverse=groups == 2)
    arrays = random_operands(shape)
    rng = np.random.default_rng(1)
    grads = (rng.normal(size=(4, 9, 4)).astype("f"), rng.normal(size=(4, 4, 3)).astype("f"))

    def scan(arrays, sharding=None):
        return selective_scan(
            **arrays,
            delta_softplus=True,
            reverse=shape.reverse,
            return_last_state=True,
            implementation=implementation,
            sharding=sharding,
        )

    expected = with_gradients(scan)(arrays, grads)
    compiled = (
        with_gradients(functools.partial(scan, sharding=sharding)).lower(arrays, grads).compile()
    )
    assert_close(compiled(arrays, grads), expected)
    found = collectives(compiled)
    assert set(found) <= {"all-reduce"}, found
    reduced = found["all-reduce"]
    # A group that its device owns is not summed over devices; one that all share is, once.
    assert sum(len(shape) == 4 for shape in reduced) == (2 if groups == 1 else 0), reduced
    assert sum(len(shape) < 4 for shape in reduced) == 3, reduced  # A, D, delta_bias


def test_unsplit_axes_and_transformations():
    """Axes that are not named hold copies; vmap, remat, eager calls and bfloat16 work."""
    sharding = ScanSharding(make_mesh(2, 2, 2), ("data",))
    arrays = [random_cross_operands(2, 2, 3, 5, 2, 2, 1, seed) for seed in (0, 1)]
    run = functools.partial(cross, implementation=None)
    split = functools.partial(run, sharding=sharding)

    def gradient(f):
        return jax.grad(lambda arrays: jnp.sum(jnp.sin(f(arrays))))

    expected = [gradient(run)(a) for a in arrays]
    assert_close(gradient(split)(arrays[0]), expected[0])
    stacked = jax.tree.map(lambda *x: np.stack(x), *arrays)
    of_both = jax.jit(jax.vmap(gradient(jax.checkpoint(split))))(stacked)
    assert_close(of_both, jax.tree.map(lambda *x: np.stack(x), *expected))

    low = jax.tree.map(lambda a: jnp.asarray(a, jnp.bfloat16), arrays[0])
    grads = jax.jit(gradient(split))(low)
    assert all(g.dtype == jnp.bfloat16 for g in grads)
    as_float = jax.tree.map(lambda a: a.astype(jnp.float32), (grads, low))
    assert_close(as_float[0], gradient(run)(as_float[1]), 2**-7)


@pytest.mark.parametrize("channels", ["tensor", None])
def test_what_a_surrounding_shard_map_splits_is_left_alone(channels):
    """Gradients that the devices have in common are summed once, where it ends."""
    mesh, batch = make_mesh(2, 2, 2), ("data", "fsdp")
    sharding = ScanSharding(mesh, batch, channels)
    arrays = random_cross_operands(4, 2, 3, 6, 2, 2, 1)
    on_its_part = jax.shard_map(
        lambda *arrays: cross(arrays, None, sharding),
        mesh=mesh,
        in_specs=(*(P(batch),) * 4, *(P(),) * 4),
        out_specs=P(batch),
        axis_names=set(batch),
        check_vma=False,
    )

    def gradient(f):
        return jax.jit(jax.grad(lambda arrays: jnp.sum(jnp.sin(f(*arrays)))))

    expected = gradient(lambda *arrays: cross(arrays, None))(arrays)
    compiled = gradient(on_its_part).lower(arrays).compile()
    assert_close(compiled(arrays), expected)
    assert set(collectives(compiled)) <= {"all-reduce"}


def test_what_does_not_split_is_refused_with_what_fits():
    arrays = random_operands(Shape(4, 9, 6, 3, 2))

    def scan(**options):
        selective_scan(**arrays, sharding=ScanSharding(make_mesh(2, 4, names="ab"), **options))

    with pytest.raises(ValueError, match=r"batch=4 does not split over 8 devices; 8 would"):
        scan(batch=("a", "b"))
    with pytest.raises(ValueError, match=r"channels=6 .* 4 devices; 4 or 8 would.*`channels`"):
        scan(channels="b")
    with pytest.raises(ValueError, match=r"groups=3 .* 2 devices; 1 or 2 or 4 would.*`channels`"):
        scan(channels="a")
    with pytest.raises(ValueError, match=r"length=9 .* 4 devices; 8 or 12 would. Steps of size"):
        scan(length="b")
    with pytest.raises(ValueError, match=r"mesh has the axes a, b, not 'tensor'"):
        scan(channels="tensor")
    with pytest.raises(ValueError, match=r"axis 'a' is named more than once"):
        scan(batch="a", channels="a")
    sharding = ScanSharding(make_mesh(2, names="a"), length="a")
    with pytest.raises(ValueError, match=r"its length cannot be split; got length='a'"):
        cross(random_cross_operands(2, 2, 3, 4, 2, 2, 1), "xla", sharding)


def test_second_derivatives_are_refused_whatever_the_implementation():
    arrays = random_cross_operands(2, 1, 3, 2, 2, 2, 1)
    sharding = ScanSharding(make_mesh(2, names="a"), "a")

    def norm_of_gradient(x):
        def loss(x):
            return jnp.sum(cross((x, *arrays[1:]), "reference", sharding) ** 2)

        return jnp.sum(jax.grad(loss)(x) ** 2)

    with pytest.raises(NotImplementedError, match="second derivatives are not supported"):
        jax.grad(norm_of_gradient)(jnp.asarray(arrays[0]))


@pytest.mark.parametrize("name", ["xla", "mosaic_tpu"])
def test_no_gather_on_a_slice_of_sixteen_chips(name, monkeypatch):
    """Compiled for a v5e 4x4 slice, which need not be there."""
    pytest.importorskip("libtpu")
    if name not in available("tpu"):
        pytest.skip(f"{name} is not available for TPUs here")
    from jax.experimental import topologies

    monkeypatch.setenv("TPU_SKIP_MDS_QUERY", "1")
    topology = topologies.get_topology_desc(platform="tpu", topology_name="v5e:4x4")
    mesh = Mesh(np.array(topology.devices).reshape(4, 2, 2), AXES)
    sharding = ScanSharding(mesh, ("data", "fsdp"), "tensor")
    arrays = random_cross_operands(16, 5, 3, 256, 2, 16, 8)
    abstract = [
        jax.ShapeDtypeStruct(a.shape, jnp.float32, sharding=NamedSharding(mesh, spec))
        for a, spec in zip((*arrays, arrays[0]), (*CROSS_SPECS, CROSS_SPECS[0]), strict=True)
    ]
    run = with_gradients(functools.partial(cross, implementation=name, sharding=sharding))
    with lowering_for(Target("tpu", topology.devices[0].device_kind)):
        compiled = run.lower(tuple(abstract[:-1]), abstract[-1]).compile()
    found = collectives(compiled)
    assert set(found) <= {"all-reduce", "reduce-scatter"}, found
    # Sums of gradients, flat as the compiler may make them; an activation's part has 2 rows of 15
    # positions and 128 channels.
    rows, weights = 2 * 15 * 2 * 16, 2 * 128 * 16
    assert max(math.prod(shape) for shape in found["all-reduce"]) <= max(rows, weights)
