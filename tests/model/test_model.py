"""What the model must do beside matching the authors' numbers."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from selective_scan_jax import implementations
from selective_scan_jax.target import Target, lowering_for

from posemamba_jax.model import PoseMamba, PoseMambaConfig
from posemamba_jax.model.block import recomputes, unrolls
from posemamba_jax.model.layers import DepthwiseConv, drop_path

# 21 joints, as of a hand: a wrist and five fingers of four joints each.
HAND_WALK = tuple(0 if joint % 4 == 1 else max(joint - 1, 0) for joint in range(21))


def tiny(**overrides):
    fields = dict(dim=8, depth=2, num_frames=6, num_joints=5, state_size=4, scan="global")
    return PoseMambaConfig(**(fields | overrides))


def clips(config, frames=None, batch=2):
    shape = (batch, frames or config.num_frames, config.num_joints, 2)
    return jax.random.normal(jax.random.key(7), shape)


def random_variables(config):
    """Draws weights without running the model: compiling its initialisation takes seconds."""
    shapes = jax.eval_shape(PoseMamba(config).init, jax.random.key(0), clips(config))
    generator = np.random.default_rng(0)
    return jax.tree.map(
        lambda leaf: jnp.asarray(0.3 * generator.normal(size=leaf.shape), jnp.float32), shapes
    )


@pytest.fixture(scope="module")
def tiny_variables():
    return random_variables(tiny())


@pytest.fixture(scope="module")
def tiny_output(tiny_variables):
    return jax.jit(PoseMamba(tiny()).apply)(tiny_variables, clips(tiny()))


@pytest.mark.parametrize(
    ("preset", "parameters"), [("S", 1_470_211), ("B", 4_742_659), ("L", 9_450_499)]
)
def test_parameters_of_presets(preset, parameters):
    model = PoseMamba(PoseMambaConfig.preset(preset))
    shapes = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 27, 17, 2)))
    assert sum(leaf.size for leaf in jax.tree.leaves(shapes)) == parameters
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(shapes))


def test_block_parameters_are_stacked_over_depth(tiny_variables):
    leaves = jax.tree.leaves(tiny_variables["params"]["blocks"])
    assert {leaf.shape[0] for leaf in leaves} == {tiny().depth}
    assert tiny_variables["params"]["spatial_norm"]["scale"].shape == (tiny().dim,)


def test_short_clip_uses_the_start_of_the_temporal_embedding(tiny_variables):
    """A clip of F frames gives what a model made for F frames gives with the same weights."""
    short = tiny(num_frames=3)
    x = clips(short)
    params = tiny_variables["params"]
    cut = {"params": params | {"temporal_pos": params["temporal_pos"][:, :3]}}
    output = jax.jit(PoseMamba(tiny()).apply)(tiny_variables, x)
    assert output.shape == (2, 3, 5, 3)
    np.testing.assert_array_equal(output, jax.jit(PoseMamba(short).apply)(cut, x))


def test_any_skeleton_with_its_limb_walk():
    config = tiny(num_joints=21, num_frames=3, scan="limbs", limb_walk=HAND_WALK)
    variables, x = random_variables(config), clips(config)
    output = jax.jit(PoseMamba(config).apply)(variables, x)
    assert output.shape == (2, 3, 21, 3)
    other_walk = dataclasses.replace(config, limb_walk=tuple(range(21)))
    other = jax.jit(PoseMamba(other_walk).apply)(variables, x)
    assert np.max(np.abs(output - other)) > 1e-4


def test_bfloat16_is_near_float32(tiny_variables, tiny_output):
    model = PoseMamba(tiny(dtype="bfloat16"))
    output, state = jax.jit(
        lambda v, x: model.apply(v, x, capture_intermediates=True, mutable=["intermediates"])
    )(tiny_variables, clips(tiny()))
    (block,) = state["intermediates"]["blocks"]["spatial"]["__call__"]
    (normed_scan,) = state["intermediates"]["blocks"]["spatial"]["scan"]["out_norm"]["__call__"]
    assert block.dtype == normed_scan.dtype == jnp.bfloat16
    assert output.dtype == jnp.float32
    error = np.linalg.norm(output - tiny_output) / np.linalg.norm(tiny_output)
    assert 0 < error < 0.03


def test_unrolled_depth_gives_the_same(tiny_variables, tiny_output):
    model = PoseMamba(tiny(scan_layers=False))
    output = jax.jit(model.apply)(tiny_variables, clips(tiny()))
    np.testing.assert_allclose(output, tiny_output, rtol=1e-5, atol=1e-6)


def test_depths_are_unrolled_only_for_training_on_a_cpu():
    if implementations("cpu")["cpu"] is not None:
        pytest.skip(implementations("cpu")["cpu"])

    def unrolled(deterministic=False, **fields):
        return unrolls(tiny(**{"implementation": "cpu", **fields}), deterministic, None)

    assert unrolled() and unrolled(depth=20) and unrolled(True, scan_layers=False)
    assert not unrolled(deterministic=True) and not unrolled(depth=21)
    assert not unrolled(dtype="bfloat16") and not unrolled(implementation="xla")
    assert not unrolled(scan_layers=True)


def test_remat_keeps_less(tiny_variables):
    """With remat the backward pass keeps nothing of a block's inside, or the scan's part alone."""

    def residual_bytes(remat):
        config = tiny(remat=remat)
        model, x = PoseMamba(config), clips(config)
        _, pullback = jax.eval_shape(
            lambda v: jax.vjp(lambda v: model.apply(v, x), v), tiny_variables
        )
        return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(pullback))

    assert residual_bytes("block") < 0.7 * residual_bytes("layers") < 0.4 * residual_bytes("none")


def test_recomputed_layers_give_the_same_gradients_with_as_many_scans(tiny_variables):
    """What is called the scan's results is kept: its kernel does not run a second time."""
    if implementations("cpu")["cpu"] is not None:
        pytest.skip(implementations("cpu")["cpu"])

    def compiled(remat):
        model = PoseMamba(tiny(remat=remat, implementation="cpu", scan_layers=True))

        def loss(variables):
            return jnp.sum(jnp.square(model.apply(variables, clips(tiny()))))

        return jax.jit(jax.grad(loss)).lower(tiny_variables).compile()

    programs = [compiled(remat) for remat in ("layers", "none")]
    for program in programs:
        # The loop's body has a spatial and a temporal block.
        assert program.as_text().count('target="selective_scan_cpu_cross_forward') == 2
    both = (jax.tree.leaves(program(tiny_variables)) for program in programs)
    for got, wanted in zip(*both, strict=True):
        assert np.linalg.norm(got - wanted) <= 1e-5 * np.linalg.norm(wanted)


def test_layers_are_recomputed_on_a_tpu_unless_told_otherwise():
    with lowering_for(Target("tpu", "TPU v5 lite")):
        assert [recomputes(tiny(remat=r)) for r in (None, "none")] == ["layers", "none"]
    with lowering_for(Target("gpu", "NVIDIA H100 80GB HBM3", 90)):
        assert [recomputes(tiny(remat=r)) for r in (None, "layers")] == ["none", "layers"]


def test_drop_path_drops_whole_samples_and_keeps_the_mean():
    branch = jax.random.normal(jax.random.key(0), (4000, 3, 2, 2))
    dropped = np.asarray(drop_path(branch, 0.25, jax.random.key(1)))
    gone = np.all(dropped == 0, axis=(1, 2, 3))
    assert abs(np.mean(gone) - 0.25) < 0.03
    np.testing.assert_allclose(dropped[~gone], branch[~gone] / 0.75, rtol=1e-6)
    np.testing.assert_array_equal(drop_path(branch, 0.0, jax.random.key(1)), branch)


def test_stochastic_depth_is_off_unless_asked_for(tiny_variables, tiny_output):
    config = tiny(drop_path=0.9)
    model = PoseMamba(config)
    off = model.apply(tiny_variables, clips(config))
    np.testing.assert_allclose(off, tiny_output, rtol=1e-5, atol=1e-6)  # the rate does not matter

    same = jnp.repeat(clips(config)[:1], 16, axis=0)

    @jax.jit
    def on(key):
        return model.apply(tiny_variables, same, deterministic=False, rngs={"dropout": key})

    first, again, other = (np.asarray(on(jax.random.key(seed))) for seed in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)
    # Whole samples drop: equal clips come out in a few ways, one for each choice of branches.
    ways = len({sample.round(4).tobytes() for sample in first})
    assert 1 < ways < 16
    with pytest.raises(Exception, match="dropout"):
        jax.eval_shape(lambda: model.apply(tiny_variables, same, deterministic=False))


def test_drop_path_rate_grows_linearly_with_depth(tiny_variables):
    """At depth 0 the rate is 0: with one depth nothing is ever dropped."""
    config = tiny(depth=1, drop_path=0.9)
    params = tiny_variables["params"]
    blocks = jax.tree.map(lambda leaf: leaf[:1], params["blocks"])
    variables = {"params": params | {"blocks": blocks}}
    x, model = clips(config), PoseMamba(config)
    on = model.apply(variables, x, deterministic=False, rngs={"dropout": jax.random.key(3)})
    np.testing.assert_allclose(on, model.apply(variables, x), rtol=1e-5, atol=1e-6)


def test_depthwise_conv_is_a_grouped_convolution():
    x = jax.random.normal(jax.random.key(0), (2, 4, 5, 6))
    variables = DepthwiseConv().init(jax.random.key(1), x)
    kernel, bias = variables["params"]["kernel"], variables["params"]["bias"]
    expected = bias + jax.lax.conv_general_dilated(
        x,
        kernel[:, :, None],
        (1, 1),
        "SAME",
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=6,
    )
    np.testing.assert_allclose(DepthwiseConv().apply(variables, x), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((2, 7, 5, 2), "7 frames; model.num_frames allows 1 to 6"),
        ((2, 6, 5, 3), "without the confidence"),
        ((2, 6, 4, 2), "5 joints"),
        ((6, 5, 2), "batch, frames"),
    ],
)
def test_wrong_input_is_named(shape, message):
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(PoseMamba(tiny()).init, jax.random.key(0), jnp.zeros(shape))
