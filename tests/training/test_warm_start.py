"""A run that starts from a model that is there already."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from posemamba_jax.errors import ConfigError
from posemamba_jax.model import mesh as mesh_lib
from posemamba_jax.model.checkpoint import save_model
from posemamba_jax.training.state import abstract_state
from posemamba_jax.training.warm_start import start_from


def fresh_state(config, devices):
    """A state before its first step, all zeros."""
    mesh = mesh_lib.make_mesh(config.mesh, devices)
    return jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), abstract_state(config, mesh))


def test_a_run_starts_from_given_parameters_and_longer_clips(make_config, one_device, tmp_path):
    short = make_config("--optim.ema", "0.9")
    rng = np.random.default_rng(0)
    given = jax.tree.map(
        lambda x: rng.normal(size=x.shape).astype(np.float32), fresh_state(short, one_device).params
    )
    save_model(tmp_path / "model", short.model, given)
    overrides = ("--optim.ema", "0.9", "--data.clip_len", "12")
    longer = make_config(*overrides, "--train.init_from", str(tmp_path / "model"))
    state = start_from(fresh_state(longer, one_device), longer)
    for params in (state.params, state.ema):
        embedding = np.asarray(params["temporal_pos"])
        np.testing.assert_array_equal(embedding[:, :9], given["temporal_pos"])
        assert embedding.shape[1] == 12 and (embedding[:, 9:] == 0).all()
        np.testing.assert_array_equal(params["head"]["kernel"], given["head"]["kernel"])
    wider = dataclasses.replace(longer, model=dataclasses.replace(longer.model, dim=16))
    with pytest.raises(ConfigError, match="model.dim 8, not 16"):
        start_from(state, wider)
