"""Every way of laying eight devices out as data x fsdp x tensor trains alike."""

import jax
import numpy as np
import pytest

from posemamba_jax.config.schema import MeshConfig
from posemamba_jax.model.mesh import make_mesh
from posemamba_jax.scaling import hlo
from posemamba_jax.scaling.collectives import find_collectives
from posemamba_jax.training.state import abstract_state, make_state
from posemamba_jax.training.step import abstract_batch, make_train_step, put_batch

STEPS = 20
SIZES = [(d, f, 8 // (d * f)) for d in (8, 4, 2, 1) for f in (1, 2, 4, 8) if d * f <= 8]
# Everything is split.
QUICK = [(2, 2, 2)]


def train(config, mesh, state):
    """Returns (losses, gradient norms, state, compiled program) of STEPS steps, each on a batch of
    its own.
    """
    step = make_train_step(config, mesh, steps_per_epoch=12, total_steps=STEPS)
    lowered = step.lower(abstract_state(config, mesh), abstract_batch(config, mesh))
    # What this spends is compilation: code that runs for milliseconds need not be fast.
    step = lowered.compile({"xla_backend_optimization_level": 0})
    rng = np.random.default_rng(0)
    metrics = []
    for _ in range(STEPS):
        poses_2d, poses_3d = rng.normal(0, 0.3, (2, 8, 9, 17, 3)).astype(np.float32)
        batch = put_batch({"poses_2d": poses_2d, "poses_3d": poses_3d}, mesh)
        state, values = step(state, batch)
        metrics.append([float(values["loss"]), float(values["grad_norm"])])
    return *np.transpose(metrics), state, step.as_text()


@pytest.fixture(scope="module")
def config(make_config):
    options = ("--train.batch_size", "8", "--optim.ema", "0.9", "--model.depth", "2")
    config = make_config(*options)
    # The draws of stochastic depth must not depend on the layout either.
    assert config.model.drop_path > 0
    return config


@pytest.fixture(scope="module")
def start(config, one_device):
    return jax.device_get(make_state(config, make_mesh(config.mesh, one_device)))


@pytest.fixture(scope="module")
def reference(config, one_device, start):
    mesh = make_mesh(config.mesh, one_device)
    losses, norms, state, _ = train(config, mesh, jax.device_put(start, one_device[0]))
    assert losses[-1] < losses[0]
    return losses, norms, jax.device_get(state)


def test_all_layouts_are_listed():
    assert len(set(SIZES)) == len(SIZES) == 10
    assert all(np.prod(sizes) == 8 for sizes in SIZES)


@pytest.mark.parametrize(
    "sizes",
    [s if s in QUICK else pytest.param(s, marks=pytest.mark.slow) for s in SIZES],
    ids=lambda sizes: "data{}-fsdp{}-tensor{}".format(*sizes),
)
def test_losses_are_those_of_one_device(sizes, config, start, reference):
    data, fsdp, tensor = sizes
    mesh = make_mesh(MeshConfig(data, fsdp, tensor))
    shardings = jax.tree.map(lambda leaf: leaf.sharding, abstract_state(config, mesh))
    losses, norms, state, program = train(config, mesh, jax.device_put(start, shardings))
    np.testing.assert_allclose(losses, reference[0], rtol=1e-5)
    np.testing.assert_allclose(norms, reference[1], rtol=1e-4)

    # What the layout is for: parameters, their average and both moments are in parts.
    for tree in (state.params, state.ema, state.opt_state[0].mu, state.opt_state[0].nu):
        kernel = tree["blocks"]["spatial"]["scan"]["in_proj"]["kernel"]
        depth, width, inner = kernel.shape
        part = (depth, width // fsdp, inner // tensor)
        assert {shard.data.shape for shard in kernel.addressable_shards} == {part}

    # Depths add up their gradients on each device and are summed over the devices together.
    found = find_collectives(hlo.parse(program), dict(mesh.shape), (9, 17))
    sums = [c for c in found if c.kind == "all-reduce" and {"data", "fsdp"} & set(c.axes)]
    assert data * fsdp == 1 or {c.times for c in sums} == {1}
    assert not any(c.content == "activations" and c.kind == "all-gather" for c in found)
