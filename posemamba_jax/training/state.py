"""What changes from step to step."""

from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax

from posemamba_jax.config.schema import Config
from posemamba_jax.model import PoseMamba
from posemamba_jax.model import mesh as mesh_lib
from posemamba_jax.training.optim import make_optimizer


@flax.struct.dataclass
class TrainState:
    """All arrays of a run; with the input pipeline's position they determine every later step.

    Attributes:
      step: int32 scalar, optimiser steps taken or skipped.
      params: the model's parameters, float32.
      ema: running average of params, or None.
      opt_state: optax's.
      key: data of the random key that every step's randomness is folded from.
      skipped: int32 scalar, updates skipped for a loss or gradient that was not finite.
      skipped_in_a_row: int32 scalar, of which just before this step.
    """

    step: jax.Array
    params: Any
    ema: Any
    opt_state: optax.OptState
    key: jax.Array
    skipped: jax.Array
    skipped_in_a_row: jax.Array

    @property
    def eval_params(self) -> Any:
        """The parameters to evaluate with: the running average where one is kept."""
        return self.params if self.ema is None else self.ema


def init_state(config: Config) -> TrainState:
    """Makes the state before the first step, from `config.seed`; to be called inside `jax.jit`."""
    init_key, train_key = jax.random.split(jax.random.key(config.seed))
    model = PoseMamba(config.model)
    clip = jnp.zeros((1, config.data.clip_len, config.model.num_joints, 2), jnp.float32)
    params = model.init(init_key, clip)["params"]
    zero = jnp.zeros((), jnp.int32)
    return TrainState(
        step=zero,
        params=params,
        ema=None if config.optim.ema is None else jax.tree.map(jnp.copy, params),
        opt_state=make_optimizer(config.optim).init(params),
        key=jax.random.key_data(train_key),
        skipped=zero,
        skipped_in_a_row=zero,
    )


def abstract_state(config: Config, mesh: jax.sharding.Mesh) -> TrainState:
    """Describes shapes, types and shardings of the state, without making it."""
    shapes = jax.eval_shape(lambda: init_state(config))
    shardings = mesh_lib.state_shardings(mesh, shapes)
    return jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
        shapes,
        shardings,
    )


def make_state(config: Config, mesh: jax.sharding.Mesh) -> TrainState:
    """Makes the state before the first step, every leaf where it belongs on the mesh."""
    shardings = jax.tree.map(lambda leaf: leaf.sharding, abstract_state(config, mesh))
    return jax.jit(lambda: init_state(config), out_shardings=shardings)()


def all_finite(state: TrainState) -> bool:
    """Tells whether parameters, averages and moments of the optimiser are all finite."""
    leaves = [x for x in jax.tree.leaves(state) if jnp.issubdtype(x.dtype, jnp.floating)]
    return bool(_all_finite(leaves))


@jax.jit
def _all_finite(leaves: list[jax.Array]) -> jax.Array:
    return jnp.stack([jnp.isfinite(leaf).all() for leaf in leaves]).all()
