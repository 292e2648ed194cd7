"""Tells whether a state dict is one of a PoseMamba, and what sizes its shapes say."""

import dataclasses
import re
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np

from posemamba_jax.convert.errors import ConvertError
from posemamba_jax.convert.layout import BLOCK, STACKS, TOP, to_torch
from posemamba_jax.model import PoseMamba, PoseMambaConfig


def check_state(state: Mapping) -> dict:
    """Returns a state dict without the prefix `module.` once it is known to hold one PoseMamba.

    Args:
      state: checkpoint key -> torch tensor or array.

    Raises:
      ConvertError: lists the keys that are missing, unexpected or of the wrong shape, or names the
        first value that is no plain array of numbers.
    """
    state = _without_prefix(state)
    _check_tensors(state)
    _check_keys(state)
    return state


def count_depth(state: Mapping) -> int:
    """Counts the blocks of a stack: one more than the highest number that a key has."""
    # No model has a number of more digits, and Python refuses to read one of thousands.
    indices = [re.match(r"(?:STE|TTE)blocks\.(\d{1,9})\.", key) for key in state]
    return max((int(match[1]) + 1 for match in indices if match), default=0)


def count_directions(state: Mapping) -> int:
    """Counts the scan directions: K of x_proj_weight (K, R + 2 N, E)."""
    return state["STEblocks.0.op.x_proj_weight"].shape[0]


def read_sizes(state: Mapping) -> dict:
    """Reads the fields of PoseMambaConfig that shapes tell; all keys have to be there."""
    shape = {key: tuple(value.shape) for key, value in state.items()}
    dim = shape["Spatial_patch_to_embedding.weight"][0]
    return {
        "dim": dim,
        "depth": count_depth(state),
        "num_frames": shape["Temporal_pos_embed"][1],
        "num_joints": shape["Spatial_pos_embed"][1],
        "mlp_ratio": shape["STEblocks.0.mlp.fc1.weight"][0] / dim,
        "state_size": shape["STEblocks.0.op.A_logs"][1],
    }


def release_shapes(config: PoseMambaConfig) -> dict[str, tuple[int, ...]]:
    """Returns the shape of every array of the release's model of this configuration, by key."""
    clip = jax.ShapeDtypeStruct((1, config.num_frames, config.num_joints, 2), jnp.float32)
    # Shapes do not depend on the backend, and this must not need the one that was asked for.
    model = PoseMamba(dataclasses.replace(config, implementation="reference"))
    shapes = jax.eval_shape(model.init, jax.random.key(0), clip)
    empty = jax.tree.map(lambda leaf: np.broadcast_to(np.float32(0), leaf.shape), shapes)
    return {key: array.shape for key, array in to_torch(empty).items()}


def _without_prefix(state):
    """Drops the prefix that torch's DataParallel puts before every key."""
    odd = next((key for key in state if not isinstance(key, str)), None)
    if odd is not None:
        raise ConvertError(f"key {odd!r} is a {type(odd).__name__}; the keys of weights are text")
    found = {}
    for key, value in state.items():
        name = key.removeprefix("module.")
        if name in found:
            raise ConvertError(
                f"both {name} and module.{name} are there, and only one can be the weights; "
                "remove the other"
            )
        found[name] = value
    return found


def _check_tensors(state):
    """Raises a ConvertError unless every value is a plain array of numbers that is in memory."""
    for key, value in state.items():
        # torch's own words; NumPy's arrays have none of these.
        layout = str(getattr(value, "layout", "torch.strided"))
        if getattr(value, "is_meta", False):
            kind = "a meta tensor, which has a shape and no numbers"
        elif getattr(value, "is_quantized", False):
            kind = "quantised; call dequantize() on it"
        elif layout != "torch.strided":
            kind = f"sparse ({layout.removeprefix('torch.')}); call to_dense() on it"
        else:
            continue
        raise ConvertError(f"{key} is {kind}, expected a plain tensor")


def _check_keys(state):
    """Raises a ConvertError unless the keys and shapes are those of one PoseMamba."""
    # A file of few keys with a block of a high number lacks blocks, however many.
    depth = max(min(count_depth(state), len(state)), 1)
    blocks = [f"{s}.{i}.{key}" for s, _ in STACKS for i in range(depth) for key, _, _ in BLOCK]
    wanted = [key for key, _, _ in TOP] + blocks
    missing = [key for key in wanted if key not in state]
    known = set(wanted)
    unexpected = [key for key in state if key not in known]
    misshapen = [] if missing else _misshapen(state)
    if missing or unexpected or misshapen:
        lists = (("missing", missing), ("unexpected", unexpected), ("of another shape", misshapen))
        raise ConvertError(
            "these weights do not fit PoseMamba\n"
            + "\n".join(f"  {name}: {_shorten(keys)}" for name, keys in lists if keys)
        )


def _misshapen(state) -> list[str]:
    """Lists what is wrong with the shapes of a state dict that has all keys."""
    try:
        # Paths do not show in shapes: any of that number will do.
        directions = ("frames",) * count_directions(state)
        config = PoseMambaConfig(**read_sizes(state), scan="global", directions=directions)
    except (IndexError, ValueError, ZeroDivisionError) as error:
        shapes = ", ".join(
            f"{key} {tuple(state[key].shape)}"
            for key in (
                "Spatial_patch_to_embedding.weight",
                "Spatial_pos_embed",
                "Temporal_pos_embed",
                "STEblocks.0.mlp.fc1.weight",
                "STEblocks.0.op.A_logs",
                "STEblocks.0.op.x_proj_weight",
            )
        )
        return [f"no model has the sizes of {shapes} ({error})"]
    expected = release_shapes(config)
    return [
        f"{key} is {tuple(state[key].shape)}, expected {shape}"
        for key, shape in expected.items()
        if tuple(state[key].shape) != shape
    ]


def _shorten(keys, limit=12):
    text = "".join(f"\n    {key}" for key in keys[:limit])
    return f"{len(keys)}{text}" + ("\n    ..." if len(keys) > limit else "")
