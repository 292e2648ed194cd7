"""Which data to use and how to cut it into clips."""

import dataclasses
from typing import Literal

from posemamba_jax.data.augment import AugmentConfig
from posemamba_jax.data.mixture import MixtureConfig
from posemamba_jax.data.sources.arrays import ArraysConfig
from posemamba_jax.data.sources.h36m import H36MConfig
from posemamba_jax.data.sources.instavariety import InstaVarietyConfig
from posemamba_jax.data.sources.mocap import MocapConfig
from posemamba_jax.data.sources.mpi_inf_3dhp import MpiInf3dhpConfig
from posemamba_jax.data.sources.posetrack import PoseTrackConfig
from posemamba_jax.data.sources.synthetic import SyntheticConfig
from posemamba_jax.limits import LARGEST_COUNT, Section, number


@dataclasses.dataclass(frozen=True)
class DataConfig(Section, path="data"):
    """The data part of the configuration.

    Attributes:
      source: which of the sources below to use; "mixture" trains on several at once.
      skeleton: what the joints are, a name (h36m17) or a YAML file; by default the source's own,
        and Human3.6M's 17 for arrays.
      clip_len: frames in a clip.
      train_stride: frames between the starts of neighbouring training clips of one recording; that
        of test clips is clip_len.
      flip_probability: how often a training clip is mirrored.
      input_2d: "detected" keypoints, or "ground_truth" ones projected from the 3D poses.
      augment: noise and masks on the input of training clips.
      h36m, mocap, synthetic, mpi_inf_3dhp, posetrack, instavariety, arrays: options of each
        source; only those of sources in use matter.
      mixture: which sources "mixture" has, and their shares.

    Raises:
      ConfigError: a number is out of its range.
    """

    source: Literal[
        "h36m",
        "mocap",
        "synthetic",
        "mpi_inf_3dhp",
        "posetrack",
        "instavariety",
        "arrays",
        "mixture",
    ] = "h36m"
    skeleton: str | None = None
    clip_len: int = number(243, at_least=1, at_most=10**6)
    train_stride: int = number(81, at_least=1, at_most=LARGEST_COUNT)
    flip_probability: float = number(0.5, at_least=0, at_most=1)
    input_2d: Literal["detected", "ground_truth"] = "detected"
    augment: AugmentConfig = dataclasses.field(default_factory=AugmentConfig)
    h36m: H36MConfig = dataclasses.field(default_factory=H36MConfig)
    mocap: MocapConfig = dataclasses.field(default_factory=MocapConfig)
    synthetic: SyntheticConfig = dataclasses.field(default_factory=SyntheticConfig)
    mpi_inf_3dhp: MpiInf3dhpConfig = dataclasses.field(default_factory=MpiInf3dhpConfig)
    posetrack: PoseTrackConfig = dataclasses.field(default_factory=PoseTrackConfig)
    instavariety: InstaVarietyConfig = dataclasses.field(default_factory=InstaVarietyConfig)
    arrays: ArraysConfig = dataclasses.field(default_factory=ArraysConfig)
    mixture: MixtureConfig = dataclasses.field(default_factory=MixtureConfig)
