"""The training step: the authors' first steps, meshes, accumulation, updates that are skipped."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from posemamba_jax.config import ConfigError, load_config
from posemamba_jax.config.schema import MeshConfig, OptimConfig
from posemamba_jax.convert import from_torch
from posemamba_jax.model.forward import make_forward
from posemamba_jax.model.mesh import check_batch, make_mesh, state_shardings
from posemamba_jax.training.optim import clip_gradients, make_optimizer, make_schedule
from posemamba_jax.training.state import abstract_state, make_state
from posemamba_jax.training.step import (
    abstract_batch,
    make_train_step,
    put_batch,
)


def make_batch(clips=8, frames=9, seed=0):
    rng = np.random.default_rng(seed)
    poses_2d, poses_3d = rng.normal(0, 0.3, (2, clips, frames, 17, 3)).astype(np.float32)
    return {"poses_2d": poses_2d, "poses_3d": poses_3d}


def compile_step(config, mesh):
    """Returns the compiled step; 12 steps in an epoch, so that few steps see one learning rate."""
    step = make_train_step(config, mesh, steps_per_epoch=12, total_steps=12)
    lowered = step.lower(abstract_state(config, mesh), abstract_batch(config, mesh))
    # What these tests spend is compilation: code that runs for milliseconds need not be fast.
    return lowered.compile({"xla_backend_optimization_level": 0})


def take_steps(step, state, mesh, batch, count):
    """Returns (losses, state) after a few steps on one batch."""
    losses = []
    for _ in range(count):
        state, metrics = step(state, put_batch(batch, mesh))
        losses.append(float(metrics["loss"]))
    return np.array(losses), state


@pytest.fixture(scope="module")
def config(make_config):
    config = make_config("--train.batch_size", "8")
    assert config.model.drop_path > 0
    return config


@pytest.fixture(scope="module")
def mesh(config, one_device):
    return make_mesh(config.mesh, one_device)


@pytest.fixture(scope="module")
def step(config, mesh):
    return compile_step(config, mesh)


@pytest.fixture(scope="module")
def reference(config, mesh, step):
    """(losses, state) of six steps on one device, with stochastic depth."""
    return take_steps(step, make_state(config, mesh), mesh, make_batch(), 6)


@pytest.mark.parametrize("accumulate", [1, 2])
def test_first_steps_are_the_authors(accumulate, data_dir, one_device):
    """Ten AdamW steps with the recipe, the batch whole and in two halves."""
    goldens = np.load(data_dir / "posemamba_tiny.npz")
    config = load_config(
        ["--model.dim=16", "--model.depth=2", "--model.num_frames=9", "--model.drop_path=0"]
        + ["--train.batch_size=2", f"--train.accumulate={accumulate}", "--optim.ema=0.75"]
    )
    mesh = make_mesh(config.mesh, one_device)
    names = [key for key in goldens if key.startswith("param/")]
    params = from_torch({key.removeprefix("param/"): goldens[key] for key in names})["params"]
    state = make_state(config, mesh).replace(
        params=jax.tree.map(jnp.copy, params), ema=jax.tree.map(jnp.copy, params)
    )
    confidence = np.ones((*goldens["input"].shape[:-1], 1), np.float32)
    poses_2d = np.concatenate([goldens["input"], confidence], -1)
    batch = {"poses_2d": poses_2d, "poses_3d": goldens["target"]}
    step = compile_step(config, mesh)

    losses, state = take_steps(step, state, mesh, batch, 1)
    jax.tree.map(
        lambda start, now, mean: np.testing.assert_allclose(
            mean, 0.75 * start + 0.25 * now, atol=1e-6
        ),
        params,
        jax.device_get(state.params),
        jax.device_get(state.ema),
    )
    assert state.eval_params is state.ema

    more, _ = take_steps(step, state, mesh, batch, 9)
    np.testing.assert_allclose([*losses, *more], goldens["train_exact/loss"], rtol=1e-4)


def test_loss_falls(reference):
    losses, state = reference
    assert np.all(np.isfinite(losses))
    assert losses[-1] < losses[0]
    assert int(state.step) == 6
    assert int(state.skipped) == 0


def test_not_finite_updates_are_skipped_and_counted(config, mesh, step):
    bad = make_batch()
    bad["poses_2d"][3, 2, 1, 0] = np.nan
    state = make_state(config, mesh)
    before = jax.device_get((state.params, state.opt_state))
    for count in (1, 2):
        state, metrics = step(state, put_batch(bad, mesh))
        assert float(metrics["skipped"]) == 1
        assert not np.isfinite(float(metrics["loss"]))
        assert int(state.skipped_in_a_row) == count
    after = jax.device_get((state.params, state.opt_state))
    jax.tree.map(np.testing.assert_array_equal, before, after)
    state, metrics = step(state, put_batch(make_batch(), mesh))
    assert (int(state.step), int(state.skipped), int(state.skipped_in_a_row)) == (3, 2, 0)
    assert float(metrics["skipped"]) == 0


def test_prediction_does_not_depend_on_the_batch(config, mesh, reference):
    _, state = reference
    predict = make_forward(config.model, mesh, config.eval.batch_size)
    poses_2d = make_batch(clips=7)["poses_2d"]
    together = predict(state.params, poses_2d)
    assert together.shape == (7, 9, 17, 3)
    alone = np.concatenate([predict(state.params, clip[None]) for clip in poses_2d])
    np.testing.assert_allclose(alone, together, atol=1e-6)


def test_clipping_scales_to_the_largest_norm():
    grads = {"a": jnp.array([3.0]), "b": jnp.array([4.0])}
    clipped = clip_gradients(grads, jnp.float32(5), 1.0)
    np.testing.assert_allclose([clipped["a"][0], clipped["b"][0]], [0.6, 0.8], rtol=1e-6)
    assert clip_gradients(grads, jnp.float32(5), 10.0)["b"][0] == 4
    assert clip_gradients(grads, jnp.float32(5), None) is grads
    zero = jax.tree.map(jnp.zeros_like, grads)
    assert clip_gradients(zero, jnp.float32(0), 1.0)["a"][0] == 0


def test_schedules():
    def rates(config, steps):
        schedule = make_schedule(config, steps_per_epoch=10, total_steps=100)
        return np.array([float(schedule(jnp.int32(step))) for step in steps])

    recipe = OptimConfig()
    np.testing.assert_allclose(
        rates(recipe, [0, 9, 10, 99]), 2e-4 * 0.99 ** np.array([0, 0, 1, 9]), rtol=1e-6
    )
    cosine = OptimConfig(schedule="cosine", learning_rate=1.0, warmup_epochs=2.0)
    np.testing.assert_allclose(
        rates(cosine, [0, 9, 19, 20, 60, 100]), [0.05, 0.5, 1.0, 1.0, 0.5, 0.0], atol=1e-6
    )


def test_decay_reaches_every_parameter():
    """With no gradient, AdamW shrinks each parameter by rate times decay, norms included."""
    params = {"norm": {"scale": jnp.ones(3)}, "bias": jnp.full(2, 2.0)}
    optimizer = make_optimizer(OptimConfig(weight_decay=0.01))
    zero = jax.tree.map(jnp.zeros_like, params)
    updates, _ = optimizer.update(zero, optimizer.init(params), params)
    jax.tree.map(lambda u, p: np.testing.assert_allclose(u, -0.01 * p), updates, params)


def test_rules_split_what_they_name(config):
    mesh = make_mesh(MeshConfig(data=2, fsdp=2, tensor=2))
    state = abstract_state(config, mesh)
    shardings = state_shardings(mesh, state)
    split = [
        jax.tree_util.keystr(path, simple=True, separator="/")
        for path, sharding in jax.tree_util.tree_leaves_with_path(shardings.params)
        if any(sharding.spec)
    ]
    scan = [name for name in split if "/scan/" in name]
    assert {name.split("/scan/")[1] for name in scan} == {
        *("A_log", "D", "conv/bias", "conv/kernel", "dt_bias", "dt_weight", "in_proj/kernel"),
        *("out_norm/bias", "out_norm/scale", "out_proj/kernel", "x_proj"),
    }
    assert any("mlp/fc1/kernel" in name for name in split)
    assert not any("head" in name or "embed" in name for name in split)


def test_impossible_meshes_are_refused_with_what_fits():
    for axes in ({"fsdp": 3}, {"data": 3}, {"data": 8, "tensor": 2}):
        with pytest.raises(ConfigError, match="8 devices.*fits"):
            make_mesh(MeshConfig(**axes))
    with pytest.raises(ConfigError, match="16 or 24|8 or 16"):
        check_batch(12, 1, make_mesh(MeshConfig(data=8)))
