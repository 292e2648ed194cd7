"""Paths over the ground and the footsteps that go with them.

Feet are planted where the path will be in the middle of each stance and travel from one foothold to
the next in between, so a foot that stands does not slide.
"""

from dataclasses import dataclass

import numpy as np

# A path is laid out this far before and after the clip, for footholds outside it.
_LEAD_SECONDS = 2.0
_GRID_SECONDS = 1 / 60


@dataclass(frozen=True)
class Stepping:
    """How feet move over a stride; times are shares of the stride.

    Attributes:
      release: when the ankle starts to travel after the foot came down.
      under: when the hip passes over the foot.
      lift: how high the ankle rises, millimetres.
      width: how far a foot is from the path, millimetres.
    """

    release: float
    under: float
    lift: float
    width: float


@dataclass(frozen=True)
class Path:
    """Where a body is over time: (steps,) arrays of seconds, metres to millimetres done.

    `phase` counts strides; the left foot comes down at whole numbers, the right at halves.
    """

    times: np.ndarray
    x: np.ndarray
    z: np.ndarray
    heading: np.ndarray
    phase: np.ndarray

    def at(self, seconds: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Interpolates ground points (..., 3) and headings (...) at some times."""
        x = np.interp(seconds, self.times, self.x)
        z = np.interp(seconds, self.times, self.z)
        return np.stack([x, np.zeros_like(x), z], axis=-1), np.interp(
            seconds, self.times, self.heading
        )


def path_times(duration: float) -> np.ndarray:
    """Makes the grid of times on which a path for a clip of `duration` seconds is laid out."""
    return np.arange(-_LEAD_SECONDS, duration + _LEAD_SECONDS, _GRID_SECONDS)


def lay_path(
    times: np.ndarray, speed: np.ndarray, heading: np.ndarray, direction: float, phase: np.ndarray
) -> Path:
    """Integrates a velocity into a path.

    Args:
      times: (steps,) seconds, from `path_times`.
      speed: (steps,) millimetres per second.
      heading: (steps,) radians.
      direction: the way of travel relative to the heading, radians.
      phase: (steps,) strides, growing.
    """
    step = np.diff(times, prepend=times[0])
    course = heading + direction
    return Path(
        times,
        np.cumsum(speed * np.sin(course) * step),
        np.cumsum(speed * np.cos(course) * step),
        heading,
        phase,
    )


def minimum_jerk(share: np.ndarray) -> np.ndarray:
    """Moves from 0 to 1 with zero speed and acceleration at both ends (Flash and Hogan, 1985)."""
    s = np.clip(share, 0, 1)
    return s * s * s * (10 + s * (6 * s - 15))


def place_feet(path: Path, seconds: np.ndarray, stepping: Stepping, ankle: float) -> np.ndarray:
    """Computes the ankle positions of a walk.

    Args:
      path: the body's way and its stride phase.
      seconds: (frames,) times.
      stepping: how feet move.
      ankle: height of a planted ankle, millimetres.

    Returns:
      (frames, 2, 3) left and right ankle.
    """
    # Phase as a function of time, made strictly growing so that it can be inverted.
    grown = path.phase + 1e-6 * np.arange(len(path.phase))
    phase = np.interp(seconds, path.times, path.phase)[:, None] + np.array([0.0, 0.5])
    stride = np.floor(phase)
    share = phase - stride

    footfalls = np.stack([stride, stride + 1]) + stepping.under - np.array([0.0, 0.5])
    ground, heading = path.at(np.interp(footfalls, grown, path.times))
    side = stepping.width * np.array([1.0, -1.0])
    ground[..., 0] += side * np.cos(heading)
    ground[..., 2] -= side * np.sin(heading)

    swing = np.clip((share - stepping.release) / (1 - stepping.release), 0, 1)
    ankles = ground[0] + minimum_jerk(swing)[..., None] * (ground[1] - ground[0])
    # Rises early, when the heel comes up, and comes down gently; at most 1.
    ankles[..., 1] = ankle + stepping.lift * (swing**2 * (1 - swing) ** 3 / 0.03456)
    return ankles
