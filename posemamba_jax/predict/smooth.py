"""The One-Euro filter: little lag in fast motion, little jitter at rest."""

import math

import numpy as np


def one_euro(
    poses: np.ndarray,
    fps: float,
    *,
    min_cutoff: float = 1.0,
    beta: float = 0.3,
    derivative_cutoff: float = 1.0,
) -> np.ndarray:
    """Smooths a clip, every coordinate on its own.

    An exponential filter whose cutoff frequency grows with the speed of the (smoothed) signal.
    Casiez, Roussel and Vogel, "1 euro filter: a simple speed-based low-pass filter for noisy input
    in interactive systems", CHI 2012.

    Args:
      poses: (frames, ...) finite.
      fps: frames per second.
      min_cutoff: cutoff in hertz at rest; lower is smoother.
      beta: growth of the cutoff with speed, in hertz per (unit per second); higher lags less.
      derivative_cutoff: cutoff in hertz for the speed.

    Returns:
      An array like `poses`.

    Raises:
      ValueError: a frequency is not positive, or beta is negative.
    """
    if not (fps > 0 and min_cutoff > 0 and derivative_cutoff > 0 and beta >= 0):
        raise ValueError(
            f"one-euro filter: fps {fps}, min_cutoff {min_cutoff} and derivative_cutoff "
            f"{derivative_cutoff} must be positive and beta {beta} not negative"
        )

    def share_of_new(cutoff):
        rate = 2 * math.pi * cutoff / fps
        return rate / (rate + 1)

    smooth = np.array(poses, np.float64)
    speed = np.zeros(smooth.shape[1:])
    for t in range(1, len(smooth)):
        change = (poses[t] - smooth[t - 1]) * fps
        speed += share_of_new(derivative_cutoff) * (change - speed)
        keep = share_of_new(min_cutoff + beta * np.abs(speed))
        smooth[t] = smooth[t - 1] + keep * (poses[t] - smooth[t - 1])
    return smooth.astype(poses.dtype)


def smooth_both_ways(poses: np.ndarray, fps: float, **cutoffs: float) -> np.ndarray:
    """Averages `one_euro` over the clip and over the clip backwards, whose lags cancel.

    Args, returns and raises: as `one_euro`.
    """
    forwards = one_euro(poses, fps, **cutoffs)
    backwards = one_euro(poses[::-1], fps, **cutoffs)[::-1]
    return (forwards + backwards) / 2
