"""Turns the arrays of the authors' PyTorch checkpoints into this package's variables."""

from collections.abc import Mapping

import jax.numpy as jnp
import numpy as np

from posemamba_jax.convert.checks import check_state, count_depth, count_directions, read_sizes
from posemamba_jax.convert.errors import ConvertError
from posemamba_jax.convert.layout import BLOCK, STACKS, TOP, to_flax
from posemamba_jax.model import PoseMambaConfig
from posemamba_jax.model.config import PRESETS


def from_torch(state: Mapping) -> dict:
    """Turns a state dict of the authors' model into variables for `PoseMamba.apply`.

    Args:
      state: checkpoint key -> torch tensor or array. A prefix `module.` is dropped.

    Returns:
      {"params": ...} of float32 JAX arrays; float32 values are carried over bit for bit. There are
      as many scan directions as in the file, four in the authors' own.

    Raises:
      ConvertError: lists the keys that are missing, unexpected or of the wrong shape.
    """
    state = check_state(state)
    depth, directions = count_depth(state), count_directions(state)
    arrays = {key: _to_numpy(key, value) for key, value in state.items()}
    params = {}
    for key, path, layout in TOP:
        _insert(params, path, jnp.asarray(to_flax(arrays[key], layout, directions)))
    for stack, name in STACKS:
        for key, path, layout in BLOCK:
            layers = [arrays[f"{stack}.{i}.{key}"] for i in range(depth)]
            layers = [to_flax(layer, layout, directions) for layer in layers]
            _insert(params, ("blocks", name, *path), jnp.asarray(np.stack(layers)))
    return {"params": params}


def config_from_torch(state: Mapping, **overrides) -> PoseMambaConfig:
    """Reads the model's configuration off the shapes of a state dict.

    They do not tell the scan order, its limb walk, or what concerns training only, but they do tell
    the number of scan directions, which has to be the order's.

    Args:
      state: as for `from_torch`.
      **overrides: fields of PoseMambaConfig.

    Raises:
      ConvertError: as `from_torch`, and for an order of another number of directions.
      ConfigError: an override is invalid, or the number of joints needs one.
    """
    state = check_state(state)
    config = PoseMambaConfig(**(read_sizes(state) | overrides))
    held, wanted = count_directions(state), len(config.order.directions)
    if held != wanted:
        raise ConvertError(
            f"these weights scan in {held} directions, the configuration in {wanted} "
            f"({', '.join(config.directions or [config.scan])}); give an order of {held}"
        )
    return config


def preset_name(config: PoseMambaConfig) -> str | None:
    """Names the preset, S, B or L, that has a configuration's sizes; None if there is none."""
    same = lambda sizes: all(getattr(config, key) == value for key, value in sizes.items())  # noqa: E731
    return next((name for name, sizes in PRESETS.items() if same(sizes)), None)


def _to_numpy(key, value):
    if hasattr(value, "detach"):
        value = value.detach().cpu()
        # NumPy has no bfloat16 of its own; float64 holds every other kind too.
        value = value.double() if value.is_floating_point() else value
    array = np.asarray(value)
    if not np.issubdtype(array.dtype, np.floating):
        raise ConvertError(f"{key} holds {array.dtype}, expected floating-point numbers")
    with np.errstate(over="ignore"):
        numbers = array.astype(np.float32)
    wrong = np.argwhere(~np.isfinite(numbers))
    if len(wrong):
        place = tuple(wrong[0].tolist())
        what = array[place]
        why = "not a number" if not np.isfinite(what) else "more than float32 can hold"
        raise ConvertError(
            f"{key}[{', '.join(map(str, place))}] is {what}, {why} ({len(wrong)} of {array.size} "
            "are like that); these weights cannot be used"
        )
    return numbers


def _insert(tree, path, leaf):
    for name in path[:-1]:
        tree = tree.setdefault(name, {})
    tree[path[-1]] = leaf
