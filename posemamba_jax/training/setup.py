"""Prepares a run: data, model, mesh and folder, checked against each other."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax

from posemamba_jax import data, losses
from posemamba_jax.config.program import set_compilation_cache
from posemamba_jax.config.schema import Config
from posemamba_jax.data import pipeline
from posemamba_jax.data.clips import ClipSource, check_skeleton
from posemamba_jax.data.identity import identify
from posemamba_jax.evaluation.checkpoint import check_joints
from posemamba_jax.model import mesh as mesh_lib
from posemamba_jax.model.implementation import check_implementation
from posemamba_jax.skeleton import Skeleton
from posemamba_jax.training import run_log
from posemamba_jax.training.checkpoint import RunCheckpoints


@dataclasses.dataclass(frozen=True)
class Setup:
    """What a run is made of before its first step.

    Attributes:
      config: of the run, the model fitted to the data.
      mesh: the devices.
      train_source, test_source: clips to train and to evaluate on, of one skeleton.
      batches: this process's share of the stream of batches.
      steps_per_epoch, total_steps: optimiser steps.
      identity: "train" and "test" -> what tells the clips of a split from others.
      changed: what differs from the configuration of the run that is resumed, a line each.
    """

    config: Config
    mesh: jax.sharding.Mesh
    train_source: ClipSource
    test_source: ClipSource
    batches: pipeline.TrainBatches
    steps_per_epoch: int
    total_steps: int
    identity: dict[str, str]
    changed: list[str]

    @property
    def skeleton(self) -> Skeleton:
        """What the joints are."""
        return self.train_source.skeleton

    def open_checkpoints(self) -> RunCheckpoints:
        """Opens the run's checkpoints, which keep what the configuration says."""
        train = self.config.train
        keep_every = train.keep_every * self.steps_per_epoch
        return RunCheckpoints(
            self.config.run_dir,
            keep_last=train.keep_last,
            keep_steps=range(keep_every, self.total_steps + 1, keep_every or 1)
            if keep_every
            else range(0),
            skeleton=self.skeleton,
        )


def prepare(config: Config, devices: Sequence[Any] | None) -> Setup:
    """Reads the data and checks that everything fits.

    Args:
      config: of the run.
      devices: to train on; None for all there are.

    Raises:
      UserError: the configuration, the data or the folder cannot be used, or they do not fit.
    """
    set_compilation_cache(config.train.compilation_cache)
    check_implementation(config.model.implementation)
    mesh = mesh_lib.make_mesh(config.mesh, devices)
    mesh_lib.check_batch(config.train.batch_size, config.train.accumulate, mesh)
    train_source = data.build(config.data, "train")
    test_source = data.build(config.data, "test")
    check_skeleton(train_source.skeleton, "the training data", test_source)
    config = fit_model(config, train_source)
    losses.check_terms(config.loss, train_source.skeleton)
    share, shares = mesh_lib.batch_share(mesh)
    batches = pipeline.train_batches(
        train_source,
        batch_size=config.train.batch_size,
        seed=config.seed,
        flip_probability=config.data.flip_probability,
        augmentation=config.data.augment,
        process_index=share,
        process_count=shares,
    )
    steps_per_epoch = pipeline.steps_per_epoch(train_source, config.train.batch_size)
    total = config.train.steps or config.train.epochs * steps_per_epoch
    changed = run_log.check_run_dir(config)
    return Setup(
        config=config,
        mesh=mesh,
        train_source=train_source,
        test_source=test_source,
        batches=batches,
        steps_per_epoch=steps_per_epoch,
        total_steps=total,
        identity={split: identify(config.data, split) for split in ("train", "test")},
        changed=changed,
    )


def fit_model(config: Config, source: ClipSource) -> Config:
    """Gives a model that names no limb walk that of the source's skeleton.

    Raises:
      UserError: the model takes another number of joints.
    """
    check_joints(config.model, source)
    model, walk = config.model, source.skeleton.limb_walk
    if model.scan != "limbs" or model.limb_walk is not None or model.walk == walk:
        return config
    return dataclasses.replace(config, model=dataclasses.replace(model, limb_walk=walk))
