"""Lifting at the frame rate that a model was trained at, whatever the keypoints' is.

A model of 9 frames that was trained at 30 per second expects 0.3 seconds of motion. Keypoints that
follow each other faster are taken apart into interleaved sequences near that rate; slower ones get
frames in between.
"""

from typing import NamedTuple

import numpy as np
from scipy.interpolate import CubicSpline

from posemamba_jax.predict import lift as inference


class Sampling(NamedTuple):
    """How keypoints become sequences for the model; one of the two is 1.

    Attributes:
      apart: every how many frames make one sequence.
      between: into how many steps interpolation cuts the step from one frame to the next.
    """

    apart: int = 1
    between: int = 1

    @classmethod
    def of(cls, fps: float, trained_fps: float | None) -> "Sampling":
        """Chooses the whole numbers that bring the keypoints' rate nearest to the model's.

        Args:
          fps: frame rate of the keypoints.
          trained_fps: the model's; None leaves the keypoints as they are.
        """
        if trained_fps is None:
            return cls()
        return cls(max(1, round(fps / trained_fps)), max(1, round(trained_fps / fps)))

    def describe(self, fps: float, trained_fps: float | None) -> list[str]:
        """Says what is done to the keypoints, as remarks for the user; none where it is nothing."""
        if self == Sampling():
            return []
        rate = f"{fps * self.between / self.apart:.4g} per second"
        if self.apart > 1:
            how = f"keypoints are lifted as {self.apart} interleaved sequences of {rate}"
        else:
            how = f"keypoints are interpolated to {rate} for lifting"
        return [
            f"the model was trained at {trained_fps:.4g} frames per second: {how} "
            "(--resample false lifts them as they come)"
        ]

    def count_windows(self, num_frames: int, window: int, overlap: int | None = None) -> int:
        """Counts the windows that `lift` uses."""
        lengths = [len(range(k, num_frames, self.apart)) for k in range(self.apart)]
        if self.between > 1:
            lengths = [(num_frames - 1) * self.between + 1]
        return sum(inference.count_windows(n, window, overlap) for n in lengths if n)

    def lift(self, predict: inference.Predict, poses_2d: np.ndarray, window: int, **options):
        """Lifts one clip.

        Frames `apart` from each other are lifted as one sequence, and so are those after them. Each
        sequence is then put onto all frames from its first to its last by a cubic spline, and a
        frame is the mean of all that reach it, so that neighbours do not jump from one sequence to
        the other.

        Args:
          predict, poses_2d, window, options: as for `posemamba_jax.predict.lift.lift`.

        Returns:
          (T, J, 3) float32, relative to the root, in the model's units.
        """

        def lift(part):
            return inference.lift(predict, part, window, **options)

        total = len(poses_2d)
        if self.between > 1:
            fine = np.arange((total - 1) * self.between + 1) / self.between
            return lift(_interpolate(poses_2d, fine))[:: self.between]
        if self.apart == 1:
            return lift(poses_2d)
        poses, times = np.zeros((*poses_2d.shape[:2], 3)), np.zeros((total, 1, 1))
        for first in range(min(self.apart, total)):
            own = np.arange(first, total, self.apart)
            lifted, reached = lift(poses_2d[own]), np.arange(own[0], own[-1] + 1)
            if len(own) > 1:
                lifted = CubicSpline(own, lifted)(reached)
            poses[reached] += lifted
            times[reached] += 1
        return (poses / times).astype(np.float32)


def _interpolate(poses_2d: np.ndarray, at: np.ndarray) -> np.ndarray:
    """Interpolates (T, J, 2 or 3) linearly at fractions of frames."""
    before = np.minimum(at.astype(int), max(len(poses_2d) - 2, 0))
    after = np.minimum(before + 1, len(poses_2d) - 1)
    share = (at - before)[:, None, None]
    return (1 - share) * poses_2d[before] + share * poses_2d[after]
