"""Reads the files that torch.save wrote, without running what is in them."""

import contextlib
import os
import pickle
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from posemamba_jax.convert.errors import ConvertError
from posemamba_jax.files.reading import check_regular, user_path

# Of the release's files the largest has 0.2 GB.
MAX_BYTES = 8 << 30


def load_torch_file(path: Path | str) -> dict:
    """Reads the model's state dict out of a file that torch.save wrote.

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


@contextlib.contextmanager
def _numpy_scalars_allowed(torch):
    """Admits NumPy numbers, such as a best error kept beside the weights, to weights_only."""
    scalar = np._core.multiarray.scalar
    dtypes = {type(np.dtype(code)) for code in ("f4", "f8", "i4", "i8")}
    # Files written under NumPy 1 name the function by its place of then.
    allowed = [scalar, (scalar, "numpy.core.multiarray.scalar"), np.dtype, *dtypes]
    with torch.serialization.safe_globals(allowed):
        yield
