"""Places the 33 MediaPipe landmarks of a person in a square region, with BlazePose's networks."""

import dataclasses
from collections.abc import Sequence

import numpy as np

from posemamba_jax.predict.detect import regions as square

SIDE = 256
NUM_LANDMARKS = 33
# Beyond the public landmarks: the hips' centre and the point on the rim, for the next region.
_POINTS = 39
_HIPS, _RIM = 33, 34
# Heat maps refine a place by the mean over this many cells around it, where they are sure.
_KERNEL = 7
_MIN_PEAK = 0.5


@dataclasses.dataclass(frozen=True)
class Landmarks:
    """Landmarks of a batch of regions.

    points: (batch, 33, 4) float32: x and y in pixels of the image, z in pixels too (towards the
      camera negative, from the hips), and visibility from 0 to 1.
    regions: (batch, 4) the regions that these landmarks suggest, for the same or the next frame.
    presence: (batch,) from 0 to 1, whether a person is there at all.
    """

    points: np.ndarray
    regions: np.ndarray
    presence: np.ndarray


def to_input(images: np.ndarray) -> np.ndarray:
    """Regions cut out of images (batch, 256, 256, 3) uint8 as the networks take them, in [0, 1]."""
    return images.astype(np.float32) / 255


def decode(outputs: Sequence[np.ndarray], regions: np.ndarray) -> Landmarks:
    """Landmarks in the image.

    Args:
      outputs: of the network: (batch, 195), 39 points of x, y, z in pixels of the input and logits
        of visibility and presence; (batch, 1) presence of a person; (batch, 64, 64, 39) logits of
        heat maps.
      regions: (batch, 4) what was cut out.
    """
    numbers, presence, maps = (np.asarray(o, np.float32) for o in outputs)
    values = numbers.reshape(len(numbers), _POINTS, 5)
    points = refine(values[..., :2] / SIDE, maps)
    places = square.to_image(points, regions)
    depth = values[..., 2:3] / SIDE * regions[:, None, 2:3]
    visibility = _sigmoid(values[..., 3:4])
    whole = np.concatenate([places, depth, visibility], -1)[:, :NUM_LANDMARKS]
    return Landmarks(
        whole.astype(np.float32),
        square.from_points(places[:, _HIPS], places[:, _RIM]),
        presence[:, 0],
    )


def refine(points: np.ndarray, maps: np.ndarray) -> np.ndarray:
    """Moves points to the centre of mass of their heat map nearby, where it is sure of
    itself.

    Args:
      points: (batch, n, 2) as fractions of the input. maps: (batch, height, width, n) logits.
    """
    height, width = maps.shape[1:3]
    size = np.array([width, height])
    cells = np.floor(points * size).astype(int)
    reach = np.arange(_KERNEL) - _KERNEL // 2
    x = cells[..., 0, None, None] + reach
    y = cells[..., 1, None, None] + reach[:, None]
    inside = (x >= 0) & (x < width) & (y >= 0) & (y < height)
    batch = np.arange(len(points))[:, None, None, None]
    channel = np.arange(points.shape[1])[:, None, None]
    near = maps[batch, np.clip(y, 0, height - 1), np.clip(x, 0, width - 1), channel]
    weight = np.where(inside, _sigmoid(near), 0)
    total = weight.sum((-2, -1))
    mean = np.stack([(weight * x).sum((-2, -1)), (weight * y).sum((-2, -1))], -1)
    mean = mean / np.maximum(total, 1e-9)[..., None] / size
    centre = ((points >= 0) & (points < 1)).all(-1)
    sure = centre & (weight.max((-2, -1)) >= _MIN_PEAK) & (total > 0)
    return np.where(sure[..., None], mean, points)


def _sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-np.clip(x, -80, 80)))
