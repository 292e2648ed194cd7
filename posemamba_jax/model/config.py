"""The model's configuration."""

import dataclasses
import math
from typing import Literal, get_args

import jax.numpy as jnp
from selective_scan_jax import Permutation, ScanOrder, direction_named

from posemamba_jax.limits import Section, number
from posemamba_jax.skeleton import H36M17

Scan = Literal["limbs", "global", "fs_ft", "fs_bt", "bs_ft", "bs_bt"]
LimbGradient = Literal["exact", "released"]
InputFrame = Literal["image", "person"]
ComputeDtype = Literal["float32", "bfloat16"]
Remat = Literal["none", "layers", "block"]

PRESETS = {
    "S": {"dim": 64, "depth": 10},
    "B": {"dim": 128, "depth": 10},
    "L": {"dim": 128, "depth": 20},
}


_CHOICES = {
    "scan": Scan,
    "input_frame": InputFrame,
    "limb_gradient": LimbGradient,
    "dtype": ComputeDtype,
    "remat": Remat,
}

# Names that implementations had earlier, which configurations and checkpoints still hold.
_RENAMED = {"pallas_tpu": "mosaic_tpu", "pallas_gpu": "mosaic_gpu"}


@dataclasses.dataclass(frozen=True)
class PoseMambaConfig(Section, path="model"):
    """What makes one PoseMamba differ from another.

    Attributes:
      dim: model width C. The scan works on E = 2C channels.
      depth: number of (spatial, temporal) pairs of blocks.
      num_frames: length of the temporal position embedding; clips may be shorter, not longer.
      num_joints: joints per frame.
      mlp_ratio: hidden width of a block's MLP, in multiples of dim.
      state_size: N, the state kept per channel.
      input_frame: "image" takes keypoints as they are, as the authors' models do. "person" measures
        them from the middle of the clip's keypoints and in units of their spread, and gives the
        model their offsets from joint 0 too; so its result does not depend on where in the image a
        person is, and is proportional to the person's size there. See `person_frame`.
      confidence: whether the model also takes how sure the detector was of each keypoint. The
        authors' models do not.
      drop_path: stochastic depth rate of the last pair of blocks; it grows linearly from 0.
      scan: order in which the grid of frames and joints is scanned; see docs/model.md.
      directions: names of directions to scan in instead of the four of `scan`, such as `frames`,
        `joints-reverse` or `permutation0`; see docs/model.md. The scan `limbs` adds its limb term
        to those that finish a frame before the next, the scan `global` none.
      permutations: grid positions in the order of their steps, a list for each permutation that
        `directions` names. A list as long as there are joints is the order within every frame.
      limb_walk: joint that the local scan adds to each slot, one per joint. None takes
        Human3.6M's. Only `scan="limbs"` uses it.
      limb_gradient: "exact", or "released" for the authors' training behaviour, whose backward
        pass forgets the gathered joints. The forward pass is the same.
      dtype: what the blocks compute in; parameters, norms and the scan stay float32.
      implementation: backend of the scan by name, None for the default of the device.
      remat: what the backward pass computes again: "none"; "layers", of each block all but the
        scan, whose operands and results are kept; or "block", each block with its scan, which takes
        the least memory and the most time. None is "layers" on a TPU and "none" elsewhere.
      scan_layers: True runs the depths as one loop, compiled once, False unrolls them, which takes
        longer to compile. None is a loop, except for training models of up to 20 depths on one CPU
        in float32, where unrolled ones are faster. Parameters are the same either way.

    Raises:
      ConfigError: a value is out of range or unknown; the message names the field.
    """

    dim: int = number(64, at_least=1, at_most=2**16)
    depth: int = number(10, at_least=1, at_most=10**4)
    num_frames: int = number(243, at_least=1, at_most=10**6)
    num_joints: int = number(17, at_least=1, at_most=10**4)
    mlp_ratio: float = number(2.0, above=0, at_most=1e3)
    state_size: int = number(16, at_least=1, at_most=2**12)
    input_frame: InputFrame = "image"
    confidence: bool = False
    drop_path: float = number(0.2, at_least=0, below=1)
    scan: Scan = "limbs"
    directions: tuple[str, ...] | None = None
    permutations: tuple[tuple[int, ...], ...] | None = None
    limb_walk: tuple[int, ...] | None = None
    limb_gradient: LimbGradient = "exact"
    dtype: ComputeDtype = "float32"
    implementation: str | None = None
    remat: Remat | None = None
    scan_layers: bool | None = None

    @classmethod
    def preset(cls, name: str, **overrides) -> "PoseMambaConfig":
        """Makes the paper's model S, B or L, with any field overridden."""
        if name not in PRESETS:
            raise ValueError(f"unknown preset {name!r}; expected one of {', '.join(PRESETS)}")
        return cls(**(PRESETS[name] | overrides))

    def __post_init__(self):
        plain = {"implementation": _RENAMED.get(self.implementation, self.implementation)}
        if not isinstance(self.dtype, str):
            plain["dtype"] = jnp.dtype(self.dtype).name
        # YAML gives lists, which cannot be hashed.
        if self.limb_walk is not None:
            plain["limb_walk"] = tuple(self.limb_walk)
        if self.directions is not None:
            plain["directions"] = tuple(self.directions)
        if self.permutations is not None:
            plain["permutations"] = tuple(map(tuple, self.permutations))
        for name, value in plain.items():
            object.__setattr__(self, name, value)
        super().__post_init__()

    def problems(self):
        if self.mlp_width < 1:
            expected = "expected a number that makes the MLP at least one unit wide"
            yield "mlp_ratio", f"{self.mlp_ratio}, {expected}"
        for name, choices in _CHOICES.items():
            value = getattr(self, name)
            if value not in get_args(choices) and not (name == "remat" and value is None):
                yield name, f"{value!r}, expected one of {', '.join(get_args(choices))}"
        joints, walk, permutations = self.num_joints, self.limb_walk, self.permutations or ()
        if walk is None and self.scan == "limbs" and joints != H36M17.num_joints:
            problem = f"not set, and the default fits {H36M17.num_joints} joints, not {joints}"
            remedy = "give one joint index per joint, or set model.scan to global"
            yield "limb_walk", f"{problem}: {remedy}"
        if walk is not None and (
            len(walk) != joints or not all(0 <= joint < joints for joint in walk)
        ):
            expected = f"expected {joints} joint indices from 0 to {joints - 1}"
            yield "limb_walk", f"{list(walk)}, {expected}"
        for i, positions in enumerate(permutations):
            try:
                Permutation(positions).check_grid(self.num_frames, joints)
            except (TypeError, ValueError) as error:
                yield "permutations", f"permutation{i}: {error}"
        if self.directions is not None:
            yield from self._direction_problems(self.directions)
        for name in (f"permutation{i}" for i in range(len(permutations))):
            if not {name, f"{name}-reverse"}.intersection(self.directions or ()):
                problem = f"no entry of model.directions names {name}; add it or leave it out"
                yield "permutations", problem

    def _direction_problems(self, directions):
        if not directions:
            yield "directions", "empty; name at least one direction"
        if self.scan not in ("limbs", "global"):
            problem = f"{self.scan!r} has directions of its own; with model.directions set"
            yield "scan", f"{problem}, use limbs (with the limb term) or global (without)"
        for name in directions:
            try:
                direction_named(name, self.permutations or ())
            except ValueError as error:
                yield "directions", str(error)

    @property
    def order(self) -> ScanOrder:
        """The paths over the grid that the configuration asks for."""
        if self.directions is None:
            return ScanOrder.named(self.scan, limb_walk=self.walk, limb_gradient=self.limb_gradient)
        directions = [direction_named(name, self.permutations or ()) for name in self.directions]
        walk = self.walk if self.scan == "limbs" else None
        return ScanOrder(tuple(directions), walk, self.limb_gradient)

    @property
    def input_channels(self) -> int:
        """Channels of a keypoint: x, y and, where the model takes it, the confidence."""
        return 2 + self.confidence

    @property
    def input_features(self) -> int:
        """What the embedding takes of a keypoint."""
        return (4 if self.input_frame == "person" else 2) + self.confidence

    @property
    def inner_dim(self) -> int:
        """E, the channels of the scan."""
        return 2 * self.dim

    @property
    def dt_rank(self) -> int:
        """R, the rank of the step projection."""
        return math.ceil(self.dim / 16)

    @property
    def mlp_width(self) -> int:
        return int(self.dim * self.mlp_ratio)

    @property
    def walk(self) -> tuple[int, ...]:
        """The limb walk in use."""
        return H36M17.limb_walk if self.limb_walk is None else self.limb_walk
