"""The authors' PyTorch checkpoints, to this package's variables and back.

    python -m posemamba_jax.convert FILE.bin OUT_DIR

writes a checkpoint that eval.py takes. Converting arrays needs no PyTorch; reading a file does.
"""

import argparse
import contextlib
import dataclasses
import os
import pickle
import re
import sys
from collections.abc import Mapping
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from posemamba_jax.errors import UserError
from posemamba_jax.files import writing
from posemamba_jax.files.reading import check_regular, user_path
from posemamba_jax.model import PoseMamba, PoseMambaConfig
from posemamba_jax.model.config import PRESETS, Scan

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


_TOP = [
    *_dense("Spatial_patch_to_embedding", "embed"),
    ("Spatial_pos_embed", ("spatial_pos",), "same"),
    ("Temporal_pos_embed", ("temporal_pos",), "same"),
    *_norm("Spatial_norm", "spatial_norm"),
    *_norm("Temporal_norm", "temporal_norm"),
    *_norm("head.0", "head_norm"),
    *_dense("head.1", "head"),
]
_BLOCK = [
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
_STACKS = (("STEblocks", "spatial"), ("TTEblocks", "temporal"))


# Of the release's files the largest has 0.2 GB.
MAX_BYTES = 8 << 30


class ConvertError(UserError, ValueError):
    """A file or a state dict that does not hold a PoseMamba; the message says what is wrong."""


def from_torch(state: Mapping) -> dict:
    """Variables for `PoseMamba.apply` from a state dict of the authors' model.

    Args:
      state: checkpoint key -> torch tensor or array. A prefix `module.` is dropped.

    Returns:
      {"params": ...} of float32 JAX arrays; float32 values are carried over bit for bit. There are
      as many scan directions as in the file, four in the authors' own.

    Raises:
      ConvertError: lists the keys that are missing, unexpected or of the wrong shape.
    """
    state = _without_prefix(state)
    _check_tensors(state)
    _check_keys(state)
    depth, directions = _depth(state), _directions(state)
    arrays = {key: _to_numpy(key, value) for key, value in state.items()}
    params = {}
    for key, path, layout in _TOP:
        _insert(params, path, jnp.asarray(_to_flax(arrays[key], layout, directions)))
    for stack, name in _STACKS:
        for key, path, layout in _BLOCK:
            layers = [arrays[f"{stack}.{i}.{key}"] for i in range(depth)]
            layers = [_to_flax(layer, layout, directions) for layer in layers]
            _insert(params, ("blocks", name, *path), jnp.asarray(np.stack(layers)))
    return {"params": params}


def to_torch(variables: Mapping) -> dict[str, np.ndarray]:
    """The inverse of `from_torch`: NumPy arrays under the checkpoint's keys.

    The keys do not say which directions the weights scan in. The authors' own model takes only
    those of a named order, four.

    Args:
      variables: {"params": ...} as `PoseMamba.init` returns them.
    """
    params = jax.tree.map(np.asarray, variables["params"])
    state = {key: _to_release(_lookup(params, path), layout) for key, path, layout in _TOP}
    for stack, name in _STACKS:
        for key, path, layout in _BLOCK:
            stacked = _lookup(params, ("blocks", name, *path))
            for i, array in enumerate(stacked):
                state[f"{stack}.{i}.{key}"] = _to_release(array, layout)
    return state


def config_from_torch(state: Mapping, **overrides) -> PoseMambaConfig:
    """The configuration that a state dict's shapes tell.

    They do not tell the scan order, its limb walk, or what concerns training only, but they do tell
    the number of scan directions, which has to be the order's.

    Args:
      state: as for `from_torch`.
      **overrides: fields of PoseMambaConfig.

    Raises:
      ConvertError: as `from_torch`, and for an order of another number of directions.
      ValueError: an override is invalid, or the number of joints needs one.
    """
    state = _without_prefix(state)
    _check_tensors(state)
    _check_keys(state)
    config = PoseMambaConfig(**(_read_sizes(state) | overrides))
    held, wanted = _directions(state), len(config.order.directions)
    if held != wanted:
        raise ConvertError(
            f"these weights scan in {held} directions, the configuration in {wanted} "
            f"({', '.join(config.directions or [config.scan])}); give an order of {held}"
        )
    return config


def preset_name(config: PoseMambaConfig) -> str | None:
    """S, B or L if the configuration has that preset's sizes, else None."""
    same = lambda sizes: all(getattr(config, key) == value for key, value in sizes.items())  # noqa: E731
    return next((name for name, sizes in PRESETS.items() if same(sizes)), None)


def load_torch_file(path: Path | str) -> dict:
    """The model's state dict out of a file that torch.save wrote.

    Only tensors, containers and NumPy scalars are admitted (weights_only), so that a file cannot
    run code.

    Args:
      path: a checkpoint of the release, or a bare state dict.

    Raises:
      ModuleNotFoundError: PyTorch is not installed.
      ConvertError: the file is missing, unreadable or holds no state dict.
    """
    try:
        import torch
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "reading a PyTorch file needs PyTorch: pip install 'posemamba-jax[torch]'"
        ) from error
    path = user_path(path)
    if not os.path.lexists(path):
        raise ConvertError(f"{path}: no such file")
    check_regular(path, MAX_BYTES, ConvertError)
    try:
        with _numpy_scalars_allowed(torch):
            checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise ConvertError(
            f"{path}: holds more than tensors, or is no PyTorch file, and was not loaded because "
            f"it could run code. Save its state dict alone and convert that. "
            f"PyTorch says: {str(error).splitlines()[0]}"
        ) from error
    # A damaged file can raise nearly anything; all of it means the same here.
    except Exception as error:
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        raise ConvertError(
            f"{path}: not a readable PyTorch file (cut short, or of another format): {reason}"
        ) from error
    state = checkpoint
    if isinstance(checkpoint, Mapping) and "model_pos" in checkpoint:
        state = checkpoint["model_pos"]
    if not isinstance(state, Mapping) or not all(hasattr(v, "shape") for v in state.values()):
        keys = list(checkpoint)[:8] if isinstance(checkpoint, Mapping) else type(checkpoint)
        raise ConvertError(
            f"{path}: expected a state dict, by itself or under 'model_pos'; it holds {keys}"
        )
    return dict(state)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m posemamba_jax.convert",
        description="Turns a PyTorch checkpoint of the authors' release into one for eval.py.",
    )
    parser.add_argument("file", type=Path, help="the .bin, .pth or .tr file")
    parser.add_argument("out_dir", type=str, help="directory of the new checkpoint")
    parser.add_argument(
        "--scan",
        choices=Scan.__args__,
        default="limbs",
        help="scan order the model was trained with; the file does not say (default: limbs)",
    )
    parser.add_argument(
        "--limb_walk",
        type=parse_limb_walk,
        help="comma-separated joint indices, for a skeleton other than Human3.6M's",
    )
    parser.add_argument(
        "--directions",
        type=lambda text: tuple(text.split(",")),
        help="comma-separated directions, of a model with others than the release's four "
        "(see docs/model.md)",
    )
    args = parser.parse_args(argv)
    # Here, because it brings Orbax, which takes seconds to import and the functions do not need.
    from posemamba_jax.model.checkpoint import save_model

    try:
        out_dir = user_path(args.out_dir)
        state = load_torch_file(args.file)
        config = config_from_torch(
            state, scan=args.scan, limb_walk=args.limb_walk, directions=args.directions
        )
        variables = from_torch(state)
        with writing.reported_as(args.out_dir):
            save_model(out_dir, config, variables["params"], {"converted_from": args.file.name})
    except (UserError, ValueError, OSError, ModuleNotFoundError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    count = sum(leaf.size for leaf in jax.tree.leaves(variables))
    print(
        f"{out_dir}: model {preset_name(config) or 'of no preset'}, dim {config.dim}, "
        f"depth {config.depth}, {config.num_frames} frames, {config.num_joints} joints, "
        f"scan {', '.join(config.directions or [config.scan])}, {count:,} parameters"
    )
    return 0


def parse_limb_walk(text: str) -> tuple[int, ...]:
    """(0, 2, 1) of "0,2,1".

    Raises:
      argparse.ArgumentTypeError: a word is not a number.
    """
    words = [word.strip() for word in text.split(",")]
    if not all(word.isascii() and word.isdecimal() for word in words):
        raise argparse.ArgumentTypeError(f"{ascii(text)}: expected joint indices, such as 0,2,1")
    return tuple(map(int, words))


def _without_prefix(state):
    """The state dict without the prefix that torch's DataParallel puts before every key."""
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


def _depth(state):
    indices = [re.match(r"(?:STE|TTE)blocks\.(\d+)\.", key) for key in state]
    return max((int(match[1]) + 1 for match in indices if match), default=0)


def _directions(state) -> int:
    """The number of scan directions, K of x_proj_weight (K, R + 2 N, E)."""
    return state["STEblocks.0.op.x_proj_weight"].shape[0]


def _read_sizes(state) -> dict:
    """The fields of PoseMambaConfig that shapes tell; assumes the keys are there."""
    shape = {key: tuple(value.shape) for key, value in state.items()}
    dim = shape["Spatial_patch_to_embedding.weight"][0]
    return {
        "dim": dim,
        "depth": _depth(state),
        "num_frames": shape["Temporal_pos_embed"][1],
        "num_joints": shape["Spatial_pos_embed"][1],
        "mlp_ratio": shape["STEblocks.0.mlp.fc1.weight"][0] / dim,
        "state_size": shape["STEblocks.0.op.A_logs"][1],
    }


def _check_keys(state):
    """Raises a ConvertError unless the keys and shapes are those of one PoseMamba."""
    depth = max(_depth(state), 1)
    blocks = [f"{s}.{i}.{key}" for s, _ in _STACKS for i in range(depth) for key, _, _ in _BLOCK]
    wanted = [key for key, _, _ in _TOP] + blocks
    missing = [key for key in wanted if key not in state]
    unexpected = [key for key in state if key not in set(wanted)]
    misshapen = []
    if not missing:
        misshapen = _misshapen(state)
    if missing or unexpected or misshapen:
        lists = (("missing", missing), ("unexpected", unexpected), ("of another shape", misshapen))
        raise ConvertError(
            "these weights do not fit PoseMamba\n"
            + "\n".join(f"  {name}: {_shorten(keys)}" for name, keys in lists if keys)
        )


def _misshapen(state):
    try:
        # Paths do not show in shapes: any of that number will do.
        directions = ("frames",) * _directions(state)
        config = PoseMambaConfig(**_read_sizes(state), scan="global", directions=directions)
    except (IndexError, ValueError) as error:
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


def release_shapes(config: PoseMambaConfig) -> dict[str, tuple[int, ...]]:
    """Checkpoint key -> shape of the release's model of this configuration."""
    clip = jax.ShapeDtypeStruct((1, config.num_frames, config.num_joints, 2), jnp.float32)
    # Shapes do not depend on the backend, and this must not need the one that was asked for.
    model = PoseMamba(dataclasses.replace(config, implementation="reference"))
    shapes = jax.eval_shape(model.init, jax.random.key(0), clip)
    empty = jax.tree.map(lambda leaf: np.broadcast_to(np.float32(0), leaf.shape), shapes)
    return {key: array.shape for key, array in to_torch(empty).items()}


def _shorten(keys, limit=12):
    text = "".join(f"\n    {key}" for key in keys[:limit])
    return f"{len(keys)}{text}" + ("\n    ..." if len(keys) > limit else "")


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


def _to_flax(array, layout, directions):
    if layout == "dense":
        return array.T
    if layout == "conv":
        return array[:, 0].transpose(1, 2, 0)
    if layout == "per_k":
        return array.reshape(directions, -1, *array.shape[1:])
    return array


def _to_release(array, layout):
    if layout == "dense":
        array = array.T
    elif layout == "conv":
        array = array.transpose(2, 0, 1)[:, None]
    elif layout == "per_k":
        array = array.reshape(-1, *array.shape[2:])
    return np.ascontiguousarray(array)


def _insert(tree, path, leaf):
    for name in path[:-1]:
        tree = tree.setdefault(name, {})
    tree[path[-1]] = leaf


def _lookup(tree, path):
    for name in path:
        tree = tree[name]
    return tree


@contextlib.contextmanager
def _numpy_scalars_allowed(torch):
    """Admits NumPy numbers, such as a best error kept beside the weights, to weights_only."""
    scalar = np._core.multiarray.scalar
    dtypes = {type(np.dtype(code)) for code in ("f4", "f8", "i4", "i8")}
    # Files written under NumPy 1 name the function by its place of then.
    allowed = [scalar, (scalar, "numpy.core.multiarray.scalar"), np.dtype, *dtypes]
    with torch.serialization.safe_globals(allowed):
        yield


if __name__ == "__main__":
    from posemamba_jax.config import run_program

    run_program(main)
