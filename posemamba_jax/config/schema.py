"""Declares the configuration: a frozen dataclass per section, with defaults and ranges."""

import dataclasses
import re
from collections.abc import Iterator
from typing import Literal

from posemamba_jax.data.config import DataConfig
from posemamba_jax.errors import ConfigError, UserError
from posemamba_jax.files.reading import user_path
from posemamba_jax.limits import LARGEST_COUNT, Section, number
from posemamba_jax.losses import LossWeights
from posemamba_jax.model import PoseMambaConfig
from posemamba_jax.model.mesh import MeshConfig


@dataclasses.dataclass(frozen=True)
class OptimConfig(Section, path="optim"):
    """These keys set AdamW and its learning rate; the defaults are the authors' recipe.

    Attributes:
      learning_rate: rate of the first epoch (`recipe`) or the peak (`cosine`).
      schedule: `recipe` multiplies by `decay` after every epoch; `cosine` falls to zero at the
        last step.
      decay: factor per epoch of the `recipe` schedule.
      warmup_epochs: epochs over which the rate first rises linearly from zero.
      weight_decay: decoupled weight decay, on every parameter.
      beta1: decay of the mean of the gradient.
      beta2: decay of the mean of its square.
      eps: added to the square root of the second moment.
      clip_norm: largest global norm of the gradient; null does not clip.
      ema: decay of a running average of the parameters, which evaluation then uses; null keeps
        none.
    """

    learning_rate: float = number(2e-4, above=0, at_most=1e6)
    schedule: Literal["recipe", "cosine"] = "recipe"
    decay: float = number(0.99, above=0, at_most=1)
    warmup_epochs: float = number(0.0, at_least=0, at_most=1e6)
    weight_decay: float = number(0.01, at_least=0, at_most=1e6)
    beta1: float = number(0.9, at_least=0, below=1)
    beta2: float = number(0.999, at_least=0, below=1)
    eps: float = number(1e-8, above=0, at_most=1e6)
    clip_norm: float | None = number(None, above=0, at_most=1e30)
    ema: float | None = number(None, above=0, below=1)


@dataclasses.dataclass(frozen=True)
class TrainConfig(Section, path="train"):
    """These keys say how long to train, what to record and when to save.

    Attributes:
      epochs: passes over the training clips.
      steps: optimiser steps in all; if given, it replaces `epochs`.
      batch_size: clips per optimiser step, over all devices.
      accumulate: parts a batch is cut into; their gradients are averaged, one part in memory at
        a time.
      log_every: steps between lines of metrics.jsonl; each holds the means since the last.
      eval_every: epochs between evaluations; 0 evaluates only at the end.
      save_every: epochs between checkpoints.
      keep_last: how many of the latest checkpoints stay.
      keep_every: every this many epochs one checkpoint stays for good; 0 for none. The best stays
        always.
      max_skipped: this many updates in a row skipped for a loss or gradient that is not finite
        end the run.
      init_from: a run, a checkpoint in it, a model's folder or `pretrained:NAME`, whose parameters
        the run starts from, as for fine-tuning; null draws them.
      resume: continue the run in `run_dir` from its latest checkpoint.
      compilation_cache: where compiled programs are kept between runs; null keeps none.
      profile: first and last step to trace into RUN_DIR/profile, such as "10..15"; null for none.
    """

    epochs: int = number(120, at_least=1, at_most=LARGEST_COUNT)
    steps: int | None = number(None, at_least=1, at_most=LARGEST_COUNT)
    batch_size: int = number(4, at_least=1, at_most=10**6)
    accumulate: int = number(1, at_least=1, at_most=10**6)
    log_every: int = number(50, at_least=1, at_most=LARGEST_COUNT)
    eval_every: int = number(1, at_least=0, at_most=LARGEST_COUNT)
    save_every: int = number(1, at_least=1, at_most=LARGEST_COUNT)
    keep_last: int = number(1, at_least=1, at_most=LARGEST_COUNT)
    keep_every: int = number(0, at_least=0, at_most=LARGEST_COUNT)
    max_skipped: int = number(20, at_least=1, at_most=LARGEST_COUNT)
    init_from: str | None = None
    resume: bool = False
    compilation_cache: str | None = "~/.cache/posemamba_jax"
    profile: str | None = None

    def problems(self) -> Iterator[tuple[str, str]]:
        if self.batch_size % self.accumulate:
            problem = f"{self.accumulate} does not divide train.batch_size, {self.batch_size}"
            yield "accumulate", problem
        if self.profile is not None and not self.profile_steps:
            yield "profile", f"{self.profile!r}, expected the first and last step, such as 10..15"

    @property
    def profile_steps(self) -> range:
        """Returns the steps of `profile`, counted from 1."""
        found = re.fullmatch(r"([1-9]\d*)\.\.(\d+)", self.profile or "")
        return range(int(found.group(1)), int(found.group(2)) + 1) if found else range(0)


@dataclasses.dataclass(frozen=True)
class EvalConfig(Section, path="eval"):
    """These keys set the evaluation during and after training.

    Attributes:
      flip: average with the flipped-back prediction of the flipped input.
      batch_size: clips per forward pass.
    """

    flip: bool = True
    batch_size: int = number(16, at_least=1, at_most=10**6)


@dataclasses.dataclass(frozen=True)
class DistributedConfig(Section, path="distributed"):
    """These keys say how the processes of a run find each other; by default there is one.

    Attributes:
      auto: ask the cluster (what JAX knows: TPU pods, SLURM, Open MPI, Kubernetes).
      coordinator: HOST:PORT at which process 0 can be reached by all; the same for all.
      num_processes: how many there are, with `coordinator`.
      process_id: which one this is, from 0, with `coordinator`.
      timeout: seconds to wait for the others at the start.
    """

    auto: bool = False
    coordinator: str | None = None
    num_processes: int | None = number(None, at_least=1, at_most=10**6)
    process_id: int | None = number(None, at_least=0, at_most=10**6)
    timeout: int = number(300, at_least=1, at_most=LARGEST_COUNT)

    def problems(self) -> Iterator[tuple[str, str]]:
        given = [self.coordinator, self.num_processes, self.process_id]
        if given == [None] * 3:
            return
        if None in given:
            yield "coordinator", "num_processes and process_id belong to it; give all three or none"
        port = re.fullmatch(".+:([0-9]{1,5})", self.coordinator, re.DOTALL)
        if not port or not 0 < int(port[1]) < 2**16:
            yield "coordinator", f"{self.coordinator!r}, expected HOST:PORT, such as 10.0.0.1:1234"
        if self.auto:
            yield "auto", "true, but coordinator, num_processes and process_id are given too"
        if self.process_id >= self.num_processes:
            yield "process_id", f"{self.process_id}, must be in 0..{self.num_processes - 1}"


@dataclasses.dataclass(frozen=True)
class Config(Section):
    """A configuration holds everything that determines a run.

    Attributes:
      run_dir: folder for checkpoints, metrics, pictures and the resolved configuration.
      seed: of the initial parameters, the order of the clips and stochastic depth.
      data: clips to train and evaluate on.
      model: architecture; `model.preset` (S, B, L) gives defaults for its other keys.
      loss: weights of the terms.
      optim: optimiser and learning rate.
      train: length, batch, records, checkpoints.
      eval: evaluation.
      mesh: devices along each axis.
      distributed: how several processes find each other.
    """

    run_dir: str = "runs/posemamba"
    seed: int = number(0, at_least=0, at_most=2**32 - 1)  # More bits would be cut off.
    data: DataConfig = dataclasses.field(default_factory=DataConfig)
    model: PoseMambaConfig = dataclasses.field(default_factory=PoseMambaConfig)
    loss: LossWeights = dataclasses.field(default_factory=LossWeights)
    optim: OptimConfig = dataclasses.field(default_factory=OptimConfig)
    train: TrainConfig = dataclasses.field(default_factory=TrainConfig)
    eval: EvalConfig = dataclasses.field(default_factory=EvalConfig)
    mesh: MeshConfig = dataclasses.field(default_factory=MeshConfig)
    distributed: DistributedConfig = dataclasses.field(default_factory=DistributedConfig)

    def __post_init__(self) -> None:
        super().__post_init__()
        try:
            object.__setattr__(self, "run_dir", str(user_path(self.run_dir)))
        except UserError as error:
            raise ConfigError(str(error), key="run_dir") from None

    def problems(self) -> Iterator[tuple[str, str]]:
        if not self.run_dir:
            yield "run_dir", "empty; give the folder for this run"
        clip_len, num_frames = self.data.clip_len, self.model.num_frames
        if clip_len > num_frames:
            remedy = "set one of them and the other follows"
            yield "data.clip_len", f"{clip_len}: more than model.num_frames, {num_frames}; {remedy}"
        try:
            self.model.order.check_grid(clip_len, self.model.num_joints)
        except ValueError as error:
            yield "data.clip_len", f"{clip_len}: {error}"
