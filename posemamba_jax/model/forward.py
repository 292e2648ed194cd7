"""Runs a model on clips: compiled, split over a device mesh, with batches of one size."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from posemamba_jax.model.config import PoseMambaConfig
from posemamba_jax.model.mesh import (
    batch_sharding,
    replicated,
    scan_sharding,
    state_shardings,
)
from posemamba_jax.model.posemamba import PoseMamba

# (clips, F, J, 2) normalised keypoints, or (clips, F, J, 3) with their confidence, to poses
# (clips, F, J, 3); float32 NumPy arrays.
Predict = Callable[[np.ndarray], np.ndarray]


def abstract_params(config: PoseMambaConfig) -> Any:
    """Gives the shapes and types of a model's parameters without making them."""
    clip = jax.ShapeDtypeStruct((1, config.num_frames, config.num_joints, 2), jnp.float32)
    # They do not depend on the implementation, and the one that is named may not run here.
    model = PoseMamba(dataclasses.replace(config, implementation="reference"))
    return jax.eval_shape(model.init, jax.random.key(0), clip)["params"]


def make_forward(
    config: PoseMambaConfig, mesh: jax.sharding.Mesh, batch_size: int
) -> Callable[[Any, np.ndarray], np.ndarray]:
    """Compiles `forward(params, poses_2d) -> poses_3d` for a mesh, with stochastic depth off.

    poses_2d is (clips, F, J, 2 or 3), any number of clips; a confidence that the model does not
    take is left out. The clips are filled up to whole batches of
    `batch_size`, rounded up to what the mesh splits evenly, so that one program serves all of them.
    The result is a NumPy array (clips, F, J, 3) float32.
    """
    model = PoseMamba(config, scan_sharding(mesh, config.inner_dim))
    ways = mesh.shape["data"] * mesh.shape["fsdp"]
    size = -(-batch_size // ways) * ways
    sharding = batch_sharding(mesh)
    compiled = jax.jit(
        lambda params, poses_2d: model.apply({"params": params}, poses_2d),
        in_shardings=(state_shardings(mesh, abstract_params(config)), sharding),
        out_shardings=replicated(mesh),
    )

    def forward(params: Any, poses_2d: np.ndarray) -> np.ndarray:
        poses_2d = np.asarray(poses_2d, np.float32)[..., : config.input_channels]
        parts = []
        for start in range(0, len(poses_2d), size):
            part = poses_2d[start : start + size]
            filled = np.zeros((size, *part.shape[1:]), np.float32)
            filled[: len(part)] = part
            # Every process has all clips here and places those of its devices.
            placed = jax.make_array_from_callback(filled.shape, sharding, filled.__getitem__)
            parts.append(np.asarray(compiled(params, placed))[: len(part)])
        return np.concatenate(parts)

    return forward


def make_predict(
    config: PoseMambaConfig,
    variables: Any,
    *,
    mesh: jax.sharding.Mesh | None = None,
    batch_size: int | None = None,
) -> Predict:
    """Compiles the forward pass of a model with the parameters inside.

    Args:
      config: the architecture.
      variables: {"params": ...}.
      mesh: the devices, made by `posemamba_jax.model.mesh.make_mesh`; None takes the default one.
      batch_size: with a mesh, clips in a compiled batch. Without one, batches are compiled as they
        come.

    Returns:
      A function from (clips, F, J, 2) to (clips, F, J, 3), float32 NumPy arrays; from
      (clips, F, J, 3) for a model with `config.confidence`.
    """
    if mesh is None:
        apply = jax.jit(PoseMamba(config).apply)
        variables = jax.device_put(variables)
        return lambda poses_2d: np.asarray(apply(variables, poses_2d), np.float32)
    forward = make_forward(config, mesh, batch_size or 1)
    params = jax.device_put(variables["params"], state_shardings(mesh, variables["params"]))
    return lambda poses_2d: forward(params, poses_2d)
