"""Finds people in whole images with the detector of BlazePose.

V. Bazarevsky et al., "BlazePose: On-device Real-time Body Pose tracking", arXiv:2006.10204
"""

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np
from PIL import Image

# (height, width) of the network's input, and the places at which it looks for people: cells of a
# grid for each stride, several anchors per cell.
SIDE = 224
_GRIDS = ((8, 2), (16, 2), (32, 6))
MIN_SCORE = 0.5
_SAME_PERSON_OVERLAP = 0.3
# The circle around somebody whose radius is below this share of the image's shorter side is small:
# the network sees little of the person, and looks again at squares of that side.
_SMALL = 0.35


@dataclasses.dataclass(frozen=True)
class Person:
    """One person found in an image; places are in pixels of the image, from its upper left corner.

    box: (4,) left, top, right, bottom of head and shoulders.
    hips: (2,) centre of the hips.
    rim: (2,) a point on the circle around the whole body, above the head.
    score: from 0 to 1.
    """

    box: np.ndarray
    hips: np.ndarray
    rim: np.ndarray
    score: float


def make_anchors() -> np.ndarray:
    """Returns (2254, 2) centres of the anchors as fractions of the input's side, in the network's
    order.
    """
    parts = []
    for stride, repeats in _GRIDS:
        cells = SIDE // stride
        centres = (np.arange(cells) + 0.5) / cells
        y, x = np.meshgrid(centres, centres, indexing="ij")
        parts.append(np.repeat(np.stack([x.ravel(), y.ravel()], -1), repeats, axis=0))
    return np.concatenate(parts).astype(np.float32)


@dataclasses.dataclass(frozen=True)
class Letterbox:
    """How an image fits into the network's square input: scaled evenly, centred, black around.

    scale: pixels of the input per pixel of the image.
    left, top: border in pixels of the input.
    width, height: the scaled image in pixels of the input.
    """

    scale: float
    left: int
    top: int
    width: int
    height: int

    @classmethod
    def of(cls, image_size: tuple[int, int]) -> "Letterbox":
        """Returns the letterbox of images of a (width, height)."""
        scale = SIDE / max(image_size)
        width, height = (max(round(n * scale), 1) for n in image_size)
        return cls(scale, (SIDE - width) // 2, (SIDE - height) // 2, width, height)


def find(image: Image.Image, run: Callable[[np.ndarray], Sequence[np.ndarray]]) -> list[Person]:
    """Returns the people in an image, best first, in its pixels.

    Args:
      image: any size, preferably not below 400 pixels.
      run: the network, from letterboxed images (batch, 224, 224, 3) uint8 to its outputs.
    """
    (people,) = decode(run(_fit(image)[None]), image.size)
    side = min(image.size)
    radii = [np.linalg.norm(person.rim - person.hips) for person in people]
    if max(image.size) <= 1.2 * side or max(radii, default=0) >= _SMALL * side:
        return people
    steps = -(-max(image.size) // side)
    corners = [np.rint(share * (np.array(image.size) - side)) for share in np.linspace(0, 1, steps)]
    tiles = [image.crop((*corner, *(corner + side))) for corner in corners]
    found = decode(run(np.stack([_fit(tile) for tile in tiles])), (side, side))
    for corner, inside in zip(corners, found, strict=True):
        people += [_moved(p, corner) for p in inside if _is_whole(p, side)]
    return _without_repeats(people)


def _fit(image: Image.Image) -> np.ndarray:
    fit = Letterbox.of(image.size)
    box = np.zeros((SIDE, SIDE, 3), np.uint8)
    small = image.resize((fit.width, fit.height), Image.Resampling.BOX)
    box[fit.top : fit.top + fit.height, fit.left : fit.left + fit.width] = np.asarray(small)
    return box


def _moved(person: Person, by: np.ndarray) -> Person:
    return Person(person.box + np.tile(by, 2), person.hips + by, person.rim + by, person.score)


def _is_whole(person: Person, side: int) -> bool:
    """Returns false for somebody whom the border of a tile cuts."""
    places = np.concatenate([person.box, person.hips])
    return bool((places >= 0).all() and (places < side).all())


def _without_repeats(people: list[Person]) -> list[Person]:
    """Returns the best of all sightings of each person."""
    kept: list[Person] = []
    for person in sorted(people, key=lambda p: -p.score):
        boxes = np.array([p.box for p in kept]).reshape(-1, 2, 2)
        if not (_overlaps(person.box.reshape(2, 2), boxes) > _SAME_PERSON_OVERLAP).any():
            kept.append(person)
    return kept


def decode(
    outputs: Sequence[np.ndarray], image_size: tuple[int, int], min_score: float = MIN_SCORE
) -> list[list[Person]]:
    """Returns the people in each image of a batch, best first.

    Args:
      outputs: (batch, anchors, 12) numbers relative to the anchors, over the input's side: centre
        and size of the box, then four points of which the first is the centre of the hips and the
        second the point on the rim; (batch, anchors, 1) logits of the scores.
      image_size: (width, height) of the images.
    """
    anchors, fit = make_anchors(), Letterbox.of(image_size)
    border = np.array([fit.left, fit.top], np.float32)
    stretch = np.array([fit.width, fit.height], np.float32) / image_size
    numbers, logits = (np.asarray(o, np.float32) for o in outputs)
    scores = 1 / (1 + np.exp(-np.clip(logits[..., 0], -80, 80)))
    found = []
    for values, score in zip(numbers, scores, strict=True):
        good = np.flatnonzero(score >= min_score)
        centres = anchors[good] * SIDE + values[good, :2]
        half = np.abs(values[good, 2:4]) / 2
        points = anchors[good, None] * SIDE + values[good, 4:8].reshape(-1, 2, 2)
        # Rows: upper left, lower right, hips, rim, all in pixels of the image.
        places = np.stack([centres - half, centres + half, points[:, 0], points[:, 1]], 1)
        found.append(_merge((places - border) / stretch, score[good]))
    return found


def _merge(places: np.ndarray, scores: np.ndarray) -> list[Person]:
    """Joins boxes that show the same person, weighted by their scores (soft suppression)."""
    people, left = [], np.argsort(-scores)
    while len(left):
        best = left[0]
        same = _overlaps(places[best], places[left]) > _SAME_PERSON_OVERLAP
        same[0] = True
        group, left = left[same], left[~same]
        corners = np.average(places[group], axis=0, weights=scores[group])
        people.append(Person(corners[:2].ravel(), corners[2], corners[3], float(scores[best])))
    return people


def _overlaps(one: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Returns intersection over union of a box with others, their corners being the first two
    rows.
    """
    low = np.maximum(one[0], others[:, 0])
    high = np.minimum(one[1], others[:, 1])
    common = np.maximum(high - low, 0).prod(-1)
    areas = (others[:, 1] - others[:, 0]).prod(-1) + (one[1] - one[0]).prod()
    return common / np.maximum(areas - common, 1e-9)
