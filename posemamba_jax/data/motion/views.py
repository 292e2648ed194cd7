"""Cameras as people hold them: drawn anew for every clip, tilted, near or far, at times moving.

World and camera coordinates are those of `cameras`. Lengths in the image are shares of its longer
side. Shapes: F frames, J joints.
"""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from posemamba_jax.data.motion.cameras import wrong_ranges
from posemamba_jax.limits import Section, number

_ASPECTS = (16 / 9, 4 / 3, 1.0)
# Nothing may come nearer to the camera than this, in millimetres.
_NEAREST_MM = 400.0


@dataclass(frozen=True)
class ViewConfig(Section, path="view"):
    """Ranges that the camera of each clip is drawn from; angles are degrees.

    Attributes:
      focal: focal length in longer sides of the image: 0.7 is a phone, 2.5 a telephoto lens.
      portrait: share of clips in portrait format.
      size: height of the person as a share of the image's height.
      height: metres of the camera above the floor.
      steep: share of clips whose camera looks at the person under an angle from `pitch` instead.
      pitch: range of that angle; positive looks down.
      roll: standard deviation of the camera's roll.
      tilted: share of clips with a roll up to `most_tilted` instead.
      most_tilted: the largest roll of those.
      cut: share of clips in which the person may leave the image in part.
      shake: largest amplitude with which a camera that is held turns during a clip.
      follow: share of clips whose camera moves along with the person.

    Raises:
      ConfigError: a value is out of its range.
    """

    focal: tuple[float, float] = (0.65, 2.5)
    portrait: float = number(0.4, at_least=0, at_most=1)
    size: tuple[float, float] = (0.1, 1.0)
    height: tuple[float, float] = (0.1, 3.0)
    steep: float = number(0.3, at_least=0, at_most=1)
    pitch: tuple[float, float] = (-20.0, 45.0)
    roll: float = number(4.0, at_least=0, at_most=90)
    tilted: float = number(0.25, at_least=0, at_most=1)
    most_tilted: float = number(30.0, at_least=0, at_most=90)
    cut: float = number(0.15, at_least=0, at_most=1)
    shake: float = number(1.0, at_least=0, at_most=20)
    follow: float = number(0.3, at_least=0, at_most=1)

    def problems(self):
        yield from wrong_ranges(self, "focal", "size", "height", positive=True)
        yield from wrong_ranges(self, "pitch")


class View(NamedTuple):
    """A camera, fixed or moving, as it sees each frame of one clip.

    Attributes:
      rotation: (F, 3, 3) turns world into camera axes.
      position: (F, 3) world millimetres.
      focal: focal length in longer sides of the image.
      width, height: of the image, in its longer side, so that the larger one is 1.
    """

    rotation: np.ndarray
    position: np.ndarray
    focal: float
    width: float
    height: float

    def to_camera(self, points: np.ndarray) -> np.ndarray:
        """Turns world millimetres (F, J, 3) into camera millimetres."""
        return (points - self.position[:, None]) @ self.rotation.swapaxes(-1, -2)

    def project(self, local: np.ndarray) -> np.ndarray:
        """Projects camera millimetres (F, J, 3) to image coordinates (F, J, 2).

        They are normalised as everywhere: x is -1 and 1 at the image's left and right border.
        """
        return local[..., :2] / local[..., 2:] * (2 * self.focal / self.width)

    def outside(self, poses_2d: np.ndarray) -> np.ndarray:
        """Says which normalised points (F, J, 2) are outside of the image: (F, J) bool."""
        return (np.abs(poses_2d) > (1, self.height / self.width)).any(axis=-1)


def draw_view(rng: np.random.Generator, points: np.ndarray, config: ViewConfig) -> View:
    """Draws a camera that looks at a moving person.

    Args:
      rng: draws it.
      points: (F, J, 3) world millimetres.
      config: ranges to draw from. The camera moves back beyond them where the person would come
        too close to it.
    """
    frames = len(points)
    aspect = rng.choice(_ASPECTS)
    width, height = (1 / aspect, 1.0) if rng.random() < config.portrait else (1.0, 1 / aspect)
    focal = np.exp(rng.uniform(*np.log(config.focal)))
    share = np.exp(rng.uniform(*np.log(config.size)))

    low, high = points.min(axis=1), points.max(axis=1)
    extent = float((high - low).max(axis=-1).max())
    centre = (low.min(axis=0) + high.max(axis=0)) / 2
    distance = max(focal * extent / (share * height), 1200.0)
    lift = low[:, 1].min() + 1000 * rng.uniform(*config.height) - centre[1]
    steep = np.deg2rad(rng.uniform(*config.pitch)) if rng.random() < config.steep else None
    azimuth = rng.uniform(0, 2 * np.pi)
    tilted, level = rng.uniform(-1, 1) * config.most_tilted, rng.normal() * config.roll
    roll = np.deg2rad(tilted if rng.random() < config.tilted else level)
    beyond = 0.3 * (rng.random() < config.cut)
    place = rng.uniform(-1, 1, 2)
    shake = _draw_shake(rng, frames, np.deg2rad(config.shake) * rng.random())
    along = np.zeros((frames, 3))
    if rng.random() < config.follow:
        way = points[:, 0] - points[:, 0].mean(axis=0)
        # A straight line through the person's way: whoever films does not copy every step.
        time = np.linspace(-1, 1, frames)[:, None]
        along = rng.uniform(0.5, 1) * time * (time * way).sum(0) / max((time**2).sum(), 1e-9)
        along[:, 1] = 0

    for _ in range(8):
        pitch = np.arcsin(np.clip(lift / distance, -0.7, 0.7)) if steep is None else steep
        back = np.array(
            [np.cos(pitch) * np.sin(azimuth), np.sin(pitch), np.cos(pitch) * np.cos(azimuth)]
        )
        # Where in the image the person is: anywhere that leaves all of it inside, or nearly.
        half = 0.5 * focal * extent / distance
        room = np.maximum(np.array([width, height]) / 2 - (1 - beyond) * half, 0)
        right, down = place * room / focal
        rotation = _turn("z", roll) @ _turn("y", np.arctan(-right)) @ _turn("x", np.arctan(down))
        rotation = rotation @ _look_along(-back)
        view = View(shake @ rotation, centre + distance * back + along, focal, width, height)
        if view.to_camera(points)[..., 2].min() > _NEAREST_MM:
            break
        distance *= 1.4
    return view


def _look_along(direction: np.ndarray) -> np.ndarray:
    """Makes the rotation (3, 3) from world axes to those of a level camera that looks that way."""
    right = np.cross(direction, (0.0, 1.0, 0.0))
    right /= np.linalg.norm(right)
    return np.stack([right, np.cross(direction, right), direction])


def _turn(axis: str, angle) -> np.ndarray:
    """Makes rotations (..., 3, 3) by angles (...) about a camera axis."""
    i = "xyz".index(axis)
    j, k = (i + 1) % 3, (i + 2) % 3
    result = np.zeros((*np.shape(angle), 3, 3))
    result[..., i, i] = 1
    result[..., j, j] = result[..., k, k] = np.cos(angle)
    result[..., j, k], result[..., k, j] = -np.sin(angle), np.sin(angle)
    return result


def _draw_shake(rng: np.random.Generator, frames: int, amplitude: float) -> np.ndarray:
    """Draws (F, 3, 3) small rotations that change smoothly, about all three axes."""
    phase, rate = rng.uniform(0, 2 * np.pi, 3), rng.uniform(0.02, 0.2, 3)
    angles = amplitude * np.sin(phase + rate * np.arange(frames)[:, None])
    return _turn("x", angles[:, 0]) @ _turn("y", angles[:, 1]) @ _turn("z", angles[:, 2])
