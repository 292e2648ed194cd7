"""Square regions around people: where they are in the image, cutting them out, going back.

A region is (..., 4) float64: x and y of its centre and its side in pixels of the image, and the
angle in radians by which its upright axis is turned clockwise against the image's.
"""

import numpy as np
from PIL import Image

# A region's side over the distance from the hips to the rim of the circle around the body.
_MARGIN = 2 * 1.25


def from_points(hips: np.ndarray, rim: np.ndarray) -> np.ndarray:
    """Regions (..., 4) around the hips (..., 2) that turn the rim's direction upwards."""
    reach = np.asarray(rim, np.float64) - hips
    side = _MARGIN * np.linalg.norm(reach, axis=-1)
    angle = np.arctan2(reach[..., 0], -reach[..., 1])
    return np.concatenate([hips, side[..., None], angle[..., None]], -1)


def axes(regions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns the unit vectors (..., 2) in the image along a region's rows and columns: right and
    down.
    """
    cos, sin = np.cos(regions[..., 3]), np.sin(regions[..., 3])
    return np.stack([cos, sin], -1), np.stack([-sin, cos], -1)


def to_image(points: np.ndarray, regions: np.ndarray) -> np.ndarray:
    """Returns points (..., n, 2) as fractions of their region in pixels of the image."""
    right, down = axes(regions)
    offset = (points - 0.5) * regions[..., None, 2:3]
    return (
        regions[..., None, :2]
        + offset[..., 0:1] * right[..., None, :]
        + offset[..., 1:2] * down[..., None, :]
    )


def interpolate(frames: np.ndarray, regions: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """Regions at the wanted frames between those of known ones, the nearest beyond the ends.

    Args:
      frames: (n,) ascending. regions: (n, 4). wanted: (m,) frames.

    Returns:
      (m, 4): centres move and angles turn evenly, sides grow by even factors.
    """
    known = np.array(regions, np.float64)
    known[:, 2] = np.log(known[:, 2])
    known[:, 3] = np.unwrap(known[:, 3])
    result = np.stack([np.interp(wanted, frames, column) for column in known.T], -1)
    result[:, 2] = np.exp(result[:, 2])
    return result


def cut_out(image: Image.Image, region: np.ndarray, side: int) -> np.ndarray:
    """Returns the region as an upright (side, side, 3) uint8 image; black beyond the image's
    borders.

    Large regions are first averaged over blocks of pixels, since sampling alone would alias.
    """
    right, down = axes(region)
    corner = region[:2] - (right + down) * region[2] / 2
    step = region[2] / side
    offset = np.zeros(2)
    factor = int(step)
    if factor > 1:
        reach = region[2] / 2 * (np.abs(right) + np.abs(down))
        low = np.maximum(np.floor(region[:2] - reach), 0).astype(int) // factor * factor
        high = np.minimum(np.ceil(region[:2] + reach) + factor, image.size).astype(int)
        if (high <= low).any():
            return np.zeros((side, side, 3), np.uint8)
        image = image.reduce(factor, (*low.tolist(), *high.tolist()))
        offset = low
    else:
        factor = 1
    x, y = (corner - offset) / factor
    a, b = right * step / factor, down * step / factor
    cut = image.transform(
        (side, side),
        Image.Transform.AFFINE,
        (a[0], b[0], x, a[1], b[1], y),
        Image.Resampling.BILINEAR,
    )
    return np.asarray(cut)
