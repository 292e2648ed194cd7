"""Which data to use and how to cut it into clips."""

import dataclasses
from typing import Literal

from posemamba_jax.data.augment import AugmentConfig
from posemamba_jax.data.h36m import H36MConfig
from posemamba_jax.data.instavariety import InstaVarietyConfig
from posemamba_jax.data.mixture import MixtureConfig
from posemamba_jax.data.mocap import MocapConfig
from posemamba_jax.data.mpi_inf_3dhp import MpiInf3dhpConfig
from posemamba_jax.data.posetrack import PoseTrackConfig
from posemamba_jax.data.synthetic import SyntheticConfig


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """The data part of the configuration.

    Attributes:
      source: which of the sources below to use; "mixture" trains on several at once.
      clip_len: frames in a clip.
      train_stride: frames between the starts of neighbouring training clips of one recording; that
        of test clips is clip_len.
      flip_probability: how often a training clip is mirrored.
      input_2d: "detected" keypoints, or "ground_truth" ones projected from the 3D poses.
      augment: noise and masks on the input of training clips.
      h36m, mocap, synthetic, mpi_inf_3dhp, posetrack, instavariety: options of each source; only
        those of sources in use matter.
      mixture: which sources "mixture" has, and their shares.

    Raises:
      ValueError: a number is out of its range.
    """

    source: Literal[
        "h36m", "mocap", "synthetic", "mpi_inf_3dhp", "posetrack", "instavariety", "mixture"
    ] = "h36m"
    clip_len: int = 243
    train_stride: int = 81
    flip_probability: float = 0.5
    input_2d: Literal["detected", "ground_truth"] = "detected"
    augment: AugmentConfig = dataclasses.field(default_factory=AugmentConfig)
    h36m: H36MConfig = dataclasses.field(default_factory=H36MConfig)
    mocap: MocapConfig = dataclasses.field(default_factory=MocapConfig)
    synthetic: SyntheticConfig = dataclasses.field(default_factory=SyntheticConfig)
    mpi_inf_3dhp: MpiInf3dhpConfig = dataclasses.field(default_factory=MpiInf3dhpConfig)
    posetrack: PoseTrackConfig = dataclasses.field(default_factory=PoseTrackConfig)
    instavariety: InstaVarietyConfig = dataclasses.field(default_factory=InstaVarietyConfig)
    mixture: MixtureConfig = dataclasses.field(default_factory=MixtureConfig)

    def __post_init__(self):
        for name in ("clip_len", "train_stride"):
            if getattr(self, name) < 1:
                raise ValueError(f"data.{name} is {getattr(self, name)}, expected at least 1")
        if not 0 <= self.flip_probability <= 1:
            raise ValueError(f"data.flip_probability is {self.flip_probability}, expected 0..1")
