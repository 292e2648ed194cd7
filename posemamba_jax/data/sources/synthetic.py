"""Procedurally generated human motion, for training and tests that need no download.

A clip is one person doing one thing, seen by one camera: all three are drawn from a generator
seeded with (seed, split, index), so any clip can be made alone and is the same every time.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from posemamba_jax.data.motion.actions import ACTIONS, perform
from posemamba_jax.data.motion.body import draw_body
from posemamba_jax.data.motion.cameras import (
    CameraConfig,
    DetectorConfig,
    check_input_2d,
    observe,
    place_camera,
)
from posemamba_jax.limits import Section, number
from posemamba_jax.skeleton import H36M17

_SPLITS = {"train": 0, "test": 1}


@dataclass(frozen=True)
class SyntheticConfig(Section, path="data.synthetic"):
    """What to generate.

    Attributes:
      num_train_clips, num_test_clips: how many clips each split has.
      fps: frames per second.
      seed: another seed makes other people do the same things in other ways.
      actions: what they do, clip after clip in turn, so that each has the same share.
      camera: ranges that each clip's camera is drawn from.
      detector: errors of the imitated 2D detector.

    Raises:
      ValueError: a value is out of its range.
    """

    num_train_clips: int = number(4096, at_least=1, at_most=10**9)
    num_test_clips: int = number(200, at_least=1, at_most=10**9)
    fps: float = number(50.0, at_least=1, at_most=1e4)
    seed: int = number(0, at_least=0, at_most=2**63 - 1)
    actions: tuple[str, ...] = tuple(ACTIONS)
    camera: CameraConfig = field(default_factory=CameraConfig)
    detector: DetectorConfig = field(default_factory=DetectorConfig)

    def problems(self):
        unknown = [action for action in self.actions if action not in ACTIONS]
        if unknown or not self.actions:
            yield "actions", f"has {unknown or 'nothing'}; known are {', '.join(ACTIONS)}"


class SyntheticClips(Sequence):
    """A clip source (docs/architecture.md) whose clips are generated when they are asked for."""

    name = "synthetic"
    skeleton = H36M17

    def __init__(self, options: SyntheticConfig, *, clip_len: int, split: str, input_2d: str):
        if split not in _SPLITS:
            raise ValueError(f"split must be 'train' or 'test', got {split!r}")
        if clip_len < 1:
            raise ValueError(f"clip_len must be at least 1, got {clip_len}")
        check_input_2d(input_2d)
        self.options = options
        self.clip_len = clip_len
        self.split = split
        self.input_2d = input_2d
        self.fps = options.fps

    @property
    def num_joints(self) -> int:
        """Number of joints of the skeleton."""
        return self.skeleton.num_joints

    def __len__(self) -> int:
        if self.split == "train":
            return self.options.num_train_clips
        return self.options.num_test_clips

    def __getitem__(self, index: int) -> dict:
        index = range(len(self))[index]
        options = self.options
        rng = np.random.default_rng((options.seed, _SPLITS[self.split], index))
        action = options.actions[index % len(options.actions)]
        body = draw_body(rng)
        points = perform(action, rng, body, np.arange(self.clip_len) / self.fps)
        camera = place_camera(rng, points, options.camera)
        arrays = observe(camera, points, input_2d=self.input_2d, detector=options.detector, rng=rng)
        return {
            **arrays,
            "frame_ids": index * self.clip_len + np.arange(self.clip_len, dtype=np.int64),
            "subject_source": f"{self.split}_{index:06d}",
            "action": action,
        }


def build(
    options: SyntheticConfig, *, clip_len: int, stride: int, split: str, input_2d: str
) -> SyntheticClips:
    """Makes the generated clip source of a split.

    Args:
      options: what to generate.
      clip_len: frames in a clip.
      stride: not used: generated clips do not overlap.
      split: "train" or "test"; they share no clip and no person.
      input_2d: "detected" or "ground_truth".

    Raises:
      ValueError: for another split or input.
    """
    del stride
    return SyntheticClips(options, clip_len=clip_len, split=split, input_2d=input_2d)
