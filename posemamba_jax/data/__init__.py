"""Clip sources behind one contract, and the pipeline that batches them for training."""

import importlib

from posemamba_jax.data.clips import ArrayClips, ClipSource, DataError
from posemamba_jax.data.config import DataConfig

__all__ = ["ArrayClips", "ClipSource", "DataConfig", "DataError", "build"]

SOURCES = ("h36m", "mocap", "synthetic")


def build(config: DataConfig, split: str) -> ClipSource:
    """The source that the configuration names.

    Args:
      config: which source, and how to cut it.
      split: "train" or "test".

    Raises:
      DataError: no such source or split, or its data cannot be used.
    """
    if config.source not in SOURCES:
        raise DataError(f"data.source is {config.source!r}, expected one of {', '.join(SOURCES)}")
    if split not in ("train", "test"):
        raise DataError(f"split is {split!r}, expected 'train' or 'test'")
    # Imported here, so that a source's own needs are felt by its users only.
    module = importlib.import_module(f"posemamba_jax.data.{config.source}")
    return module.build(
        getattr(config, config.source),
        clip_len=config.clip_len,
        stride=config.train_stride if split == "train" else config.clip_len,
        split=split,
        input_2d=config.input_2d,
    )
