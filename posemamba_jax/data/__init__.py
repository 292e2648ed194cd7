"""Clip sources behind one contract, and the pipeline that batches them for training."""

import dataclasses
import importlib

from posemamba_jax.data.clips import ArrayClips, ClipSource, DataError, check_skeleton
from posemamba_jax.data.config import DataConfig
from posemamba_jax.data.mixture import Mixture
from posemamba_jax.files.skeleton_file import load_skeleton
from posemamba_jax.skeleton import H36M17

__all__ = ["ArrayClips", "ClipSource", "DataConfig", "DataError", "build"]

SOURCES = ("h36m", "mocap", "synthetic", "mpi_inf_3dhp", "posetrack", "instavariety", "arrays")


def build(config: DataConfig, split: str) -> ClipSource:
    """Makes the source that the configuration names.

    Args:
      config: which source, and how to cut it.
      split: "train" or "test".

    Raises:
      DataError: no such source or split, its data cannot be used, or its skeleton is not the one
        that the configuration names.
    """
    if config.source not in (*SOURCES, "mixture"):
        raise DataError(
            f"data.source is {config.source!r}, expected one of {', '.join(SOURCES)}, mixture"
        )
    if split not in ("train", "test"):
        raise DataError(f"split is {split!r}, expected 'train' or 'test'")
    if config.source == "mixture":
        return _build_mixture(config, split)
    asked = None if config.skeleton is None else load_skeleton(config.skeleton)
    own = {"skeleton": asked or H36M17} if config.source == "arrays" else {}
    # A source is the module of its name, so a new one needs no branch here.
    module = importlib.import_module(f"posemamba_jax.data.sources.{config.source}")
    source = module.build(
        getattr(config, config.source),
        clip_len=config.clip_len,
        stride=config.train_stride if split == "train" else config.clip_len,
        split=split,
        input_2d=config.input_2d,
        **own,
    )
    if asked is not None:
        check_skeleton(asked, f"data.skeleton, {config.skeleton},", source)
    return source


def _build_mixture(config: DataConfig, split: str) -> ClipSource:
    """Makes a mixture to train on, or the one source that it is evaluated on."""
    mixture = config.mixture
    for name in (*mixture.sources, *filter(None, [mixture.test])):
        if name not in SOURCES:
            raise DataError(
                f"data.mixture names the source {name!r}, expected some of {', '.join(SOURCES)}"
            )
    inputs = mixture.input_2d or (config.input_2d,) * len(mixture.sources)
    parts = [
        dataclasses.replace(config, source=name, input_2d=input_2d)
        for name, input_2d in zip(mixture.sources, inputs, strict=True)
    ]
    if split == "test":
        name = mixture.test or next(iter(mixture.sources), "")
        named = [part for part in parts if part.source == name]
        return build(named[0] if named else dataclasses.replace(config, source=name), split)
    return Mixture(
        [build(part, split) for part in parts],
        mixture.weights or None,
        mixture.join_epochs or None,
    )
