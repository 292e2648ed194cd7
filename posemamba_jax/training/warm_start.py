"""Starts a run from the parameters of a model that is there already."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from posemamba_jax.config.schema import Config
from posemamba_jax.errors import ConfigError
from posemamba_jax.model.checkpoint import check_shapes, load_model
from posemamba_jax.training.state import TrainState

# What may differ from the model that is there: how it is computed, and what only training uses.
_FREE = ("num_frames", "drop_path", "dtype", "implementation", "remat", "scan_layers")


def start_from(state: TrainState, config: Config) -> TrainState:
    """Puts the parameters of `config.train.init_from` into a state before its first step.

    The running average, where one is kept, starts from them too. Optimiser and random key stay as
    they are. Where the run's clips are longer than those of the model, the new frames' position
    embeddings are zero; where they are shorter, the first ones are kept. A run whose model takes
    confidences can start from one that does not: it ignores them at first.

    Args:
      state: as `make_state` gives it.
      config: the run.

    Raises:
      ConfigError: the model has another architecture than `config.model`.
      CheckpointError: there is no model, or it is damaged.
    """
    given, variables = load_model(config.train.init_from)
    for field in dataclasses.fields(given):
        there, wanted = getattr(given, field.name), getattr(config.model, field.name)
        gains_confidence = field.name == "confidence" and wanted
        if there != wanted and field.name not in _FREE and not gains_confidence:
            raise ConfigError(
                f"{config.train.init_from} has model.{field.name} {there}, not {wanted}; train "
                "with its architecture or start anew",
                key="train.init_from",
            )
    params = dict(variables["params"])
    embedding = np.asarray(params["temporal_pos"])[:, : config.model.num_frames]
    missing = config.model.num_frames - embedding.shape[1]
    params["temporal_pos"] = np.pad(embedding, ((0, 0), (0, missing), (0, 0)))
    if config.model.confidence and not given.confidence:
        # The confidence is the last feature; weights of zero leave it out.
        kernel = np.pad(params["embed"]["kernel"], ((0, 1), (0, 0)))
        params["embed"] = {**params["embed"], "kernel": kernel}
    shapes = {
        jax.tree_util.keystr(path, simple=True, separator="/"): leaf.shape
        for path, leaf in jax.tree_util.tree_leaves_with_path(params)
    }
    check_shapes(shapes, state.params, config.train.init_from)
    params = jax.tree.map(
        lambda new, old: jax.device_put(np.asarray(new, old.dtype), old.sharding),
        params,
        state.params,
    )
    ema = None if state.ema is None else jax.tree.map(jnp.copy, params)
    return state.replace(params=params, ema=ema)
