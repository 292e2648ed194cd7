"""Turns the authors' PyTorch checkpoints into this package's variables and back.

    python -m posemamba_jax.convert FILE.bin OUT_DIR

writes a checkpoint that eval.py takes. Converting arrays needs no PyTorch; reading a file does.
"""

from posemamba_jax.convert.checks import release_shapes
from posemamba_jax.convert.command import main, parse_limb_walk
from posemamba_jax.convert.errors import ConvertError
from posemamba_jax.convert.layout import to_torch
from posemamba_jax.convert.torch_file import load_torch_file
from posemamba_jax.convert.weights import config_from_torch, from_torch, preset_name

__all__ = [
    "ConvertError",
    "config_from_torch",
    "from_torch",
    "load_torch_file",
    "main",
    "parse_limb_walk",
    "preset_name",
    "release_shapes",
    "to_torch",
]
