"""Motion capture of which every training clip is drawn anew: person, camera and detector.

Only joint positions are in memory. `draw(i, rng)` cuts a clip out of a recording, from a random
frame and at a random speed; gives the person other limbs; places a camera; and imitates what a
keypoint detector makes of the image. All of it follows from `rng`, which the input pipeline seeds
with (seed, clip, epoch).

Shapes: F = clip_len frames, J = 17 joints.
"""

import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from posemamba_jax.data.clips import DataError, clip_offsets
from posemamba_jax.data.motion.keypoint_errors import KeypointConfig, imitate_detector, redefine
from posemamba_jax.data.motion.limbs import BodyConfig, draw_factors, rescale_limbs, sample_frames
from posemamba_jax.data.motion.views import ViewConfig, draw_view
from posemamba_jax.limits import LARGEST_COUNT, Section, number
from posemamba_jax.skeleton import H36M17


@dataclass(frozen=True)
class DrawConfig(Section, path="data.mocap.draw"):
    """How clips are drawn from motion capture.

    Attributes:
      clips_per_epoch: training clips in an epoch; 0 for as many as `data.train_stride` cuts.
      view: ranges that cameras are drawn from.
      body: how people are varied; only in training.
      keypoints: joint definitions and errors of the imitated detector.

    Raises:
      ConfigError: a value is out of its range.
    """

    clips_per_epoch: int = number(0, at_least=0, at_most=LARGEST_COUNT)
    view: ViewConfig = field(default_factory=ViewConfig)
    body: BodyConfig = field(default_factory=BodyConfig)
    keypoints: KeypointConfig = field(default_factory=KeypointConfig)


class Motion(NamedTuple):
    """One uninterrupted recording: `positions` (frames, J, 3) world millimetres, and its weight."""

    name: str
    positions: np.ndarray
    weight: float = 1.0


class DrawnClips:
    """A clip source (see `posemamba_jax.data.clips`) whose training clips are drawn anew.

    Of the test split, clip i is always the same: windows cover every recording, each with a camera
    and errors of its own that follow from the seed, the recording's name and the window; people and
    speed are as recorded.

    Args:
      motions: the recordings.
      options: what clips are drawn from.
      clip_len: frames in a clip.
      stride: frames between windows, which decides the number of training clips too.
      fps: frame rate of the recordings and of clips at speed 1.
      seed: of everything that is fixed.
      split: "train" or "test".
      input_2d: "detected" for an imitated detector, "ground_truth" for exact keypoints.

    Raises:
      DataError: no recordings.
    """

    name = "mocap"
    skeleton = H36M17
    protocol = "h36m"

    def __init__(
        self,
        motions: Sequence[Motion],
        options: DrawConfig,
        *,
        clip_len: int,
        stride: int,
        fps: float,
        seed: int,
        split: str,
        input_2d: str,
    ):
        if not motions:
            raise DataError("mocap: no recordings, so there is nothing to cut clips from")
        self.motions = list(motions)
        self.options, self.clip_len, self.fps, self.seed = options, clip_len, fps, seed
        self.split, self.input_2d = split, input_2d
        lengths = np.array([len(motion.positions) for motion in self.motions])
        # Frame numbers are unique over all recordings, with room for one padded clip each.
        self._first_frames = np.cumsum(lengths + clip_len) - (lengths + clip_len)
        self.has_padding = bool((lengths < clip_len).any())
        counts = [
            len(clip_offsets(n, clip_len, stride, cover_end=split == "test")) for n in lengths
        ]
        if split == "train":
            weights = np.array([motion.weight for motion in self.motions]) * lengths
            counts = share_out(weights, options.clips_per_epoch or sum(counts))
        self._motion_of_clip = np.repeat(np.arange(len(counts)), counts)
        self._rank_of_clip = np.concatenate([np.arange(count) for count in counts])
        self._counts = np.asarray(counts)
        if split == "test":
            self._starts = np.concatenate(
                [clip_offsets(n, clip_len, stride, cover_end=True)[:, 0] for n in lengths]
            )

    @property
    def num_joints(self) -> int:
        return self.skeleton.num_joints

    def __len__(self) -> int:
        return len(self._motion_of_clip)

    def motion_of(self, i: int) -> Motion:
        """Returns the recording that clip i is cut from."""
        return self.motions[self._motion_of_clip[i]]

    def __getitem__(self, i: int) -> dict:
        i = range(len(self))[i]
        motion = self.motion_of(i)
        key = (self.seed, zlib.crc32(motion.name.encode()), int(self._rank_of_clip[i]))
        rng = np.random.default_rng(key)
        if self.split == "train":
            return self.draw(i, rng)
        start = int(self._starts[i])
        at = np.minimum(start + np.arange(self.clip_len), len(motion.positions) - 1)
        points = motion.positions[at].astype(np.float64)
        clip = self._observe(points, rng, 1 / self.fps)
        # Windows that overlap differ in their cameras: frames of different windows are different.
        ids = self._first_frames[self._motion_of_clip[i]] + at
        return clip | {
            "frame_ids": ids + int(self._rank_of_clip[i]) * (1 << 32),
            "frame_mask": start + np.arange(self.clip_len) < len(motion.positions),
            "subject_source": f"{motion.name}.{self._rank_of_clip[i]}",
            "action": motion.name,
        }

    def draw(self, i: int, rng: np.random.Generator) -> dict:
        """Draws training clip i; `source[i]` is one such draw that stays the same.

        Args:
          i: which clip: it decides the recording, and roughly the part of it.
          rng: decides everything else.

        Returns:
          A clip as `posemamba_jax.data.clips.ClipSource` describes it, with frame_mask (F,) bool,
          which is False where the recording had ended and its last frame is repeated.
        """
        which = int(self._motion_of_clip[i])
        motion = self.motions[which]
        speed = float(np.exp(rng.uniform(*np.log(self.options.body.speed))))
        span = speed * (self.clip_len - 1)
        # Each clip starts in its own part of the recording, so that an epoch covers all of it.
        room = max(len(motion.positions) - 1 - span, 0)
        start = room * (self._rank_of_clip[i] + rng.random()) / self._counts[which]
        at = start + speed * np.arange(self.clip_len)
        last = len(motion.positions) - 1
        points = sample_frames(motion.positions, np.minimum(at, last)).astype(np.float64)
        points = rescale_limbs(points, draw_factors(rng, self.options.body))
        return self._observe(points, rng, 1 / self.fps) | {
            "frame_ids": self._first_frames[which] + np.minimum(at, last).astype(np.int64),
            "frame_mask": at < last + 1,
            "subject_source": motion.name,
            "action": motion.name,
        }

    def _observe(self, points: np.ndarray, rng: np.random.Generator, frame_seconds: float) -> dict:
        """Computes what one camera and detector see of (F, J, 3) world millimetres."""
        options = self.options
        view = draw_view(rng, points, options.view)
        local = view.to_camera(points)
        root = local[:, :1]
        mm_per_unit = root[..., 2:] * (view.width / (2 * view.focal))
        relative = local - root
        offset = np.concatenate([root[..., :2], np.zeros_like(root[..., :1])], axis=-1)
        if self.input_2d == "detected":
            names = options.keypoints.definitions
            definition = names[rng.integers(len(names))]
            seen = redefine(points, definition, options.keypoints.offset_mm, rng)
            seen = view.to_camera(seen)
            exact = view.project(seen)
            poses_2d = imitate_detector(
                exact, seen[..., 2], view.outside(exact), options.keypoints, rng, frame_seconds
            )
        else:
            exact = view.project(local)
            poses_2d = np.concatenate([exact, np.ones_like(exact[..., :1])], axis=-1)
        return {
            "poses_2d": poses_2d.astype(np.float32),
            "poses_3d": ((relative + offset) / mm_per_unit).astype(np.float32),
            "poses_3d_mm": relative.astype(np.float32),
            "mm_per_unit": mm_per_unit[:, 0, 0].astype(np.float32),
        }


def share_out(weights: np.ndarray, total: int) -> np.ndarray:
    """Shares `total` out in whole numbers in proportion to the weights (largest remainders).

    Where there are enough, each is at least one, so that no recording is lost.
    """
    least = int(total >= len(weights))
    exact = np.maximum(weights / weights.sum() * total - least, 0)
    left = total - least * len(weights)
    exact *= left / max(exact.sum(), 1e-12)
    counts = np.floor(exact).astype(int)
    # Largest remainders first; where all shares are below one there are none to prefer.
    order = np.argsort(counts - exact, kind="stable")
    for k in range(left - counts.sum()):
        counts[order[k % len(order)]] += 1
    return counts + least
