"""The configuration as frozen dataclasses, one per section; `posemamba_jax.config` reads them."""

import dataclasses
import re
from typing import Literal

from posemamba_jax.data.config import DataConfig
from posemamba_jax.errors import UserError
from posemamba_jax.losses import LossWeights
from posemamba_jax.model import PoseMambaConfig


class ConfigError(UserError, ValueError):
    """An unknown key, a value of the wrong type, or values that contradict each other."""


def _require(condition: bool, text: str) -> None:
    if not condition:
        raise ConfigError(text)


@dataclasses.dataclass(frozen=True)
class OptimConfig:
    """AdamW and its learning rate; the defaults are the recipe of the authors' release.

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

    learning_rate: float = 2e-4
    schedule: Literal["recipe", "cosine"] = "recipe"
    decay: float = 0.99
    warmup_epochs: float = 0.0
    weight_decay: float = 0.01
    beta1: float = 0.9
    beta2: float = 0.999
    eps: float = 1e-8
    clip_norm: float | None = None
    ema: float | None = None

    def __post_init__(self) -> None:
        _require(self.learning_rate > 0, f"optim.learning_rate: {self.learning_rate}, must be > 0")
        _require(0 < self.decay <= 1, f"optim.decay: {self.decay}, must be in (0, 1]")
        _require(
            self.warmup_epochs >= 0,
            f"optim.warmup_epochs: {self.warmup_epochs}, must not be negative",
        )
        _require(self.weight_decay >= 0, f"optim.weight_decay: {self.weight_decay}, must be >= 0")
        for name in ("beta1", "beta2"):
            value = getattr(self, name)
            _require(0 <= value < 1, f"optim.{name}: {value}, must be in [0, 1)")
        _require(self.eps > 0, f"optim.eps: {self.eps}, must be > 0")
        clip, ema = self.clip_norm, self.ema
        _require(clip is None or clip > 0, f"optim.clip_norm: {clip}, must be > 0 or null")
        _require(ema is None or 0 < ema < 1, f"optim.ema: {ema}, must be in (0, 1) or null")


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """How long to train, what to record and when to save.

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
        resume: continue the run in `run_dir` from its latest checkpoint.
        compilation_cache: where compiled programs are kept between runs; null keeps none.
        profile: first and last step to trace into RUN_DIR/profile, such as "10..15"; null for none.
    """

    epochs: int = 120
    steps: int | None = None
    batch_size: int = 4
    accumulate: int = 1
    log_every: int = 50
    eval_every: int = 1
    save_every: int = 1
    keep_last: int = 1
    keep_every: int = 0
    max_skipped: int = 20
    resume: bool = False
    compilation_cache: str | None = "~/.cache/posemamba_jax"
    profile: str | None = None

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size", "accumulate", "log_every", "save_every", "keep_last",
                     "max_skipped"):  # fmt: skip
            value = getattr(self, name)
            _require(value >= 1, f"train.{name}: {value}, must be at least 1")
        for name in ("eval_every", "keep_every"):
            value = getattr(self, name)
            _require(value >= 0, f"train.{name}: {value}, must be at least 0")
        steps = self.steps
        _require(steps is None or steps >= 1, f"train.steps: {steps}, must be at least 1 or null")
        _require(
            self.batch_size % self.accumulate == 0,
            f"train.accumulate: {self.accumulate} does not divide train.batch_size, "
            f"{self.batch_size}",
        )
        _require(
            self.profile is None or len(self.profile_steps) > 0,
            f"train.profile: {self.profile!r}, expected the first and last step to trace, such as "
            "10..15",
        )

    @property
    def profile_steps(self) -> range:
        """The steps of `profile`, counted from 1."""
        found = re.fullmatch(r"([1-9]\d*)\.\.(\d+)", self.profile or "")
        return range(int(found.group(1)), int(found.group(2)) + 1) if found else range(0)


@dataclasses.dataclass(frozen=True)
class EvalConfig:
    """Evaluation during and after training.

    Attributes:
        flip: average with the flipped-back prediction of the flipped input.
        batch_size: clips per forward pass.
    """

    flip: bool = True
    batch_size: int = 16

    def __post_init__(self) -> None:
        _require(self.batch_size >= 1, f"eval.batch_size: {self.batch_size}, must be at least 1")


@dataclasses.dataclass(frozen=True)
class MeshConfig:
    """Devices along each axis of the mesh; the product must be the number of devices.

    Attributes:
        data: the batch is split over it; -1 takes the devices that the other axes leave.
        fsdp: parameters and optimiser state are split over it, and the batch too.
        tensor: the inner channels of the blocks are split over it.
    """

    data: int = -1
    fsdp: int = 1
    tensor: int = 1

    def __post_init__(self) -> None:
        _require(self.data == -1 or self.data >= 1, f"mesh.data: {self.data}, must be -1 or >= 1")
        for name in ("fsdp", "tensor"):
            value = getattr(self, name)
            _require(value >= 1, f"mesh.{name}: {value}, must be at least 1")


@dataclasses.dataclass(frozen=True)
class DistributedConfig:
    """How the processes of a run find each other; by default there is one.

    Attributes:
        auto: ask the cluster (what JAX knows: TPU pods, SLURM, Open MPI, Kubernetes).
        coordinator: HOST:PORT at which process 0 can be reached by all; the same for all.
        num_processes: how many there are, with `coordinator`.
        process_id: which one this is, from 0, with `coordinator`.
        timeout: seconds to wait for the others at the start.
    """

    auto: bool = False
    coordinator: str | None = None
    num_processes: int | None = None
    process_id: int | None = None
    timeout: int = 300

    def __post_init__(self) -> None:
        explicit = (self.coordinator, self.num_processes, self.process_id)
        given = [value is not None for value in explicit]
        _require(
            all(given) or not any(given),
            "distributed.coordinator, num_processes and process_id: give all three or none",
        )
        _require(
            not (self.auto and any(given)),
            "distributed.auto: true, but coordinator, num_processes and process_id are given too",
        )
        _require(self.timeout >= 1, f"distributed.timeout: {self.timeout}, must be at least 1")
        if all(given):
            count, number = self.num_processes, self.process_id
            _require(count >= 1, f"distributed.num_processes: {count}, must be at least 1")
            _require(
                0 <= number < count,
                f"distributed.process_id: {number}, must be in 0..{count - 1} "
                "(distributed.num_processes counts them)",
            )


@dataclasses.dataclass(frozen=True)
class Config:
    """Everything that determines a run.

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
    seed: int = 0
    data: DataConfig = dataclasses.field(default_factory=DataConfig)
    model: PoseMambaConfig = dataclasses.field(default_factory=PoseMambaConfig)
    loss: LossWeights = dataclasses.field(default_factory=LossWeights)
    optim: OptimConfig = dataclasses.field(default_factory=OptimConfig)
    train: TrainConfig = dataclasses.field(default_factory=TrainConfig)
    eval: EvalConfig = dataclasses.field(default_factory=EvalConfig)
    mesh: MeshConfig = dataclasses.field(default_factory=MeshConfig)
    distributed: DistributedConfig = dataclasses.field(default_factory=DistributedConfig)

    def __post_init__(self) -> None:
        _require(self.seed >= 0, f"seed: {self.seed}, must be at least 0")
        _require(bool(self.run_dir), "run_dir: empty; give the folder for this run")
        clip_len, num_frames = self.data.clip_len, self.model.num_frames
        _require(
            clip_len <= num_frames,
            f"data.clip_len: {clip_len} is more than model.num_frames, {num_frames}; set one of "
            "them and the other follows",
        )
