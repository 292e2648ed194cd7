"""Noise and masks on the 2D input of training clips, as MotionBERT pretrains with.

Noise imitates a detector on poses that are exact: each joint's error drifts between key frames,
where it is drawn from a Gaussian or, sometimes, uniformly from a square, and jitters a little in
every frame (Chang et al., "PoseLifter", 2019; Zhu et al., "MotionBERT", 2023). Their parameters
were fitted joint by joint to one detector; those here are the same for all joints and are options.
Masks hide single joints and whole frames: x = y = confidence = 0. Targets stay as they are.
"""

import dataclasses

import numpy as np

from posemamba_jax.limits import Section, number


@dataclasses.dataclass(frozen=True)
class AugmentConfig(Section, path="data.augment"):
    """What is done to training input; by default nothing.

    Attributes:
      noise: whether exact 2D poses (input_2d: ground_truth, PoseTrack) get a detector's errors.
        Detections are never given more.
      noise_std: standard deviation of the Gaussian errors in x and in y, in units of half the
        image's width.
      outlier_share: share of key frames whose error is drawn from the square instead.
      outlier_range: side of that square.
      key_frames: how many per clip.
      jitter_std: standard deviation of the errors that are new in every frame.
      confidence_scale: an error of this size halves the confidence.
      mask_joints: probability that a joint of a frame is hidden.
      mask_frames: probability that a whole frame is hidden.

    Raises:
      ValueError: a value is out of its range.
    """

    noise: bool = False
    noise_std: float = number(0.01, at_least=0, at_most=1e3)
    outlier_share: float = number(0.05, at_least=0, at_most=1)
    outlier_range: float = number(0.06, at_least=0, at_most=1e3)
    key_frames: int = number(27, at_least=2, at_most=10**6)
    jitter_std: float = number(0.002, at_least=0, at_most=1e3)
    confidence_scale: float = number(0.05, above=0, at_most=1e3)
    mask_joints: float = number(0.0, at_least=0, at_most=1)
    mask_frames: float = number(0.0, at_least=0, at_most=1)

    @property
    def changes_anything(self) -> bool:
        return self.noise or self.mask_joints > 0 or self.mask_frames > 0


def augment_2d(
    poses_2d: np.ndarray, config: AugmentConfig, rng: np.random.Generator, *, exact: bool
) -> np.ndarray:
    """Adds noise to exact poses, and hides joints and frames.

    Args:
      poses_2d: (frames, joints, 3) x, y, confidence; not changed.
      config: what to do.
      rng: draws it.
      exact: whether the poses are ground truth.

    Returns:
      (frames, joints, 3) of the same dtype.
    """
    if config.noise and exact:
        poses_2d = add_noise(poses_2d, config, rng)
    if config.mask_joints or config.mask_frames:
        poses_2d = mask(poses_2d, config, rng)
    return poses_2d


def add_noise(poses_2d: np.ndarray, config: AugmentConfig, rng: np.random.Generator) -> np.ndarray:
    """Adds the errors of an imitated detector, and confidences that fall as errors grow.

    Joints that were not seen (confidence 0) stay so.
    """
    frames, joints, _ = poses_2d.shape
    keys = min(config.key_frames, max(frames, 2))
    at_keys = rng.normal(0, config.noise_std, (keys, joints, 2))
    outlier = rng.random((keys, joints, 1)) < config.outlier_share
    far = rng.uniform(-config.outlier_range / 2, config.outlier_range / 2, (keys, joints, 2))
    at_keys = np.where(outlier, far, at_keys)

    position = np.linspace(0, keys - 1, frames)
    before = np.minimum(position.astype(int), keys - 2)
    share = (position - before)[:, None, None]
    error = (1 - share) * at_keys[before] + share * at_keys[before + 1]
    error += rng.normal(0, config.jitter_std, error.shape)

    size = np.linalg.norm(error, axis=-1)
    factor = config.confidence_scale / (config.confidence_scale + size)
    noisy = np.concatenate(
        [poses_2d[..., :2] + error, (poses_2d[..., 2] * factor)[..., None]], axis=-1
    )
    return np.where(poses_2d[..., 2:] > 0, noisy, poses_2d).astype(poses_2d.dtype)


def mask(poses_2d: np.ndarray, config: AugmentConfig, rng: np.random.Generator) -> np.ndarray:
    """Hides joints and frames at random."""
    frames, joints, _ = poses_2d.shape
    keep = rng.random((frames, joints, 1)) >= config.mask_joints
    keep &= rng.random((frames, 1, 1)) >= config.mask_frames
    return poses_2d * keep.astype(poses_2d.dtype)
