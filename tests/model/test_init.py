"""Initialisation: PyTorch's distributions, by range and moments."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from posemamba_jax.model import PoseMamba, PoseMambaConfig

CONFIG = PoseMambaConfig(dim=32, depth=4, num_frames=9)
E, N, R = CONFIG.inner_dim, CONFIG.state_size, CONFIG.dt_rank


@pytest.fixture(scope="module")
def params():
    model = PoseMamba(CONFIG)
    return jax.jit(model.init)(jax.random.key(0), jnp.zeros((1, 2, 17, 2)))["params"]


def flat(tree):
    return {
        "/".join(key.key for key in path): np.asarray(leaf)
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }


FAN_IN = {
    "embed/kernel": 2,
    "embed/bias": 2,
    "head/kernel": 32,
    "head/bias": 32,
    **{
        f"blocks/{block}/{name}": fan_in
        for block in ("spatial", "temporal")
        for name, fan_in in {
            "scan/in_proj/kernel": 32,
            "scan/conv/kernel": 9,
            "scan/conv/bias": 9,
            "scan/x_proj": E,
            "scan/dt_weight": R,
            "scan/out_proj/kernel": E,
            "mlp/fc1/kernel": 32,
            "mlp/fc1/bias": 32,
            "mlp/fc2/kernel": 64,
            "mlp/fc2/bias": 64,
        }.items()
    },
}


@pytest.mark.parametrize("name", FAN_IN)
def test_uniform_in_one_over_root_fan_in(name, params):
    values, bound = flat(params)[name], FAN_IN[name] ** -0.5
    assert np.max(np.abs(values)) <= bound
    if values.size > 100:
        # Six standard errors of a uniform distribution's mean and mean square.
        tolerance = 6 / np.sqrt(values.size)
        assert abs(np.mean(values / bound)) < tolerance
        assert abs(np.mean(np.square(values / bound)) - 1 / 3) < tolerance
        assert np.max(np.abs(values)) > 0.9 * bound


def test_every_other_parameter(params):
    for name, values in flat(params).items():
        if name in FAN_IN:
            continue
        leaf = name.rsplit("/", 1)[-1]
        if leaf in ("spatial_pos", "temporal_pos") or (leaf == "bias" and "norm" in name):
            assert np.all(values == 0), name
        elif leaf == "D" or (leaf == "scale" and "norm" in name):
            assert np.all(values == 1), name
        elif leaf == "A_log":
            np.testing.assert_allclose(
                np.exp(values), np.broadcast_to(1 + np.arange(N), values.shape), rtol=1e-6
            )
        elif leaf == "dt_bias":
            step = np.log1p(np.exp(values.astype(np.float64)))
            assert np.all((step > 0.999e-3) & (step < 1.001e-1)), name
            share = (np.log(step) - np.log(1e-3)) / np.log(100)
            assert abs(np.mean(share) - 0.5) < 6 / np.sqrt(12 * share.size), name
        else:
            pytest.fail(f"no expectation for {name}")


def test_depths_and_blocks_start_from_different_weights(params):
    spatial = params["blocks"]["spatial"]["scan"]["in_proj"]["kernel"]
    temporal = params["blocks"]["temporal"]["scan"]["in_proj"]["kernel"]
    assert not np.allclose(spatial[0], spatial[1])
    assert not np.allclose(spatial[0], temporal[0])
