"""Where each array of the authors' checkpoints is in this package's variables, and how it lies."""

from collections.abc import Mapping

import jax
import numpy as np

# Checkpoint key, path under "params", how the array is laid out. Layouts, release -> here:
#   same       unchanged
#   dense      (out, in) -> (in, out)
#   conv       (E, 1, 3, 3) -> (3, 3, E)
#   per_k      (K*E, ...) -> (K, E, ...): one row of channels per scan direction
_LAYER_NORM = (("weight", "scale"), ("bias", "bias"))
_DENSE = (("weight", "kernel"), ("bias", "bias"))


def _norm(key, *path):
    return [(f"{key}.{theirs}", (*path, ours), "same") for theirs, ours in _LAYER_NORM]


def _dense(key, *path, bias=True):
    layouts = {"weight": "dense", "bias": "same"}
    return [
        (f"{key}.{theirs}", (*path, ours), layouts[theirs])
        for theirs, ours in _DENSE
        if bias or theirs != "bias"
    ]


TOP = [
    *_dense("Spatial_patch_to_embedding", "embed"),
    ("Spatial_pos_embed", ("spatial_pos",), "same"),
    ("Temporal_pos_embed", ("temporal_pos",), "same"),
    *_norm("Spatial_norm", "spatial_norm"),
    *_norm("Temporal_norm", "temporal_norm"),
    *_norm("head.0", "head_norm"),
    *_dense("head.1", "head"),
]
BLOCK = [
    *_norm("norm", "norm"),
    *_dense("op.in_proj", "scan", "in_proj", bias=False),
    ("op.conv2d.weight", ("scan", "conv", "kernel"), "conv"),
    ("op.conv2d.bias", ("scan", "conv", "bias"), "same"),
    ("op.x_proj_weight", ("scan", "x_proj"), "same"),
    ("op.dt_projs_weight", ("scan", "dt_weight"), "same"),
    ("op.dt_projs_bias", ("scan", "dt_bias"), "same"),
    ("op.A_logs", ("scan", "A_log"), "per_k"),
    ("op.Ds", ("scan", "D"), "per_k"),
    *_norm("op.out_norm", "scan", "out_norm"),
    *_dense("op.out_proj", "scan", "out_proj", bias=False),
    *_norm("norm2", "mlp_norm"),
    *_dense("mlp.fc1", "mlp", "fc1"),
    *_dense("mlp.fc2", "mlp", "fc2"),
]
STACKS = (("STEblocks", "spatial"), ("TTEblocks", "temporal"))


def to_torch(variables: Mapping) -> dict[str, np.ndarray]:
    """Turns variables back into the NumPy arrays, by checkpoint key, that `from_torch` takes.

    The keys do not say which directions the weights scan in. The authors' own model takes only
    those of a named order, four.

    Args:
      variables: {"params": ...} as `PoseMamba.init` returns them.
    """
    params = jax.tree.map(np.asarray, variables["params"])
    state = {key: _to_release(_lookup(params, path), layout) for key, path, layout in TOP}
    for stack, name in STACKS:
        for key, path, layout in BLOCK:
            stacked = _lookup(params, ("blocks", name, *path))
            for i, array in enumerate(stacked):
                state[f"{stack}.{i}.{key}"] = _to_release(array, layout)
    return state


def to_flax(array: np.ndarray, layout: str, directions: int) -> np.ndarray:
    """Rearranges an array of the release as this package's modules take it.

    Args:
      array: as the checkpoint has it.
      layout: one of those above.
      directions: number of scan directions, K.
    """
    if layout == "dense":
        return array.T
    if layout == "conv":
        return array[:, 0].transpose(1, 2, 0)
    if layout == "per_k":
        return array.reshape(directions, -1, *array.shape[1:])
    return array


def _to_release(array: np.ndarray, layout: str) -> np.ndarray:
    """Rearranges an array of this package as the release has it; the inverse of `to_flax`."""
    if layout == "dense":
        array = array.T
    elif layout == "conv":
        array = array.transpose(2, 0, 1)[:, None]
    elif layout == "per_k":
        array = array.reshape(-1, *array.shape[2:])
    return np.ascontiguousarray(array)


def _lookup(tree, path):
    for name in path:
        tree = tree[name]
    return tree
