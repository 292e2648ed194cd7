"""Follows people over a whole video from what the detector found in every k-th frame.

Frames here are those that the detector looked at, counted in the video's own frames.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np

from posemamba_jax.predict.detect import regions as square
from posemamba_jax.predict.detect.detector import Person

# Two sightings may be of one person if the regions' centres are nearer than this share of the
# smaller side, plus what a fast runner covers in the time between, up to a limit, and their sides
# differ by less than this factor.
_REACH = 0.2
_SPEED = 0.5  # sides per second
_FARTHEST = 0.6
_GROWTH = 1.4
_TURN = 0.35, 2.0  # radians, and radians per second
# Who is seen less surely may go on being somebody, but is nobody new.
_SURE = 0.7
# Appearance: cosine similarity of colour histograms. Neighbours in time may differ by a turn of the
# body; parts of a track that are joined over a gap must look alike.
_ALIKE = 0.4
_ALIKE_OVER_GAP = 0.7
_LONGEST_GAP = 2.0  # seconds
_BINS = 6


@dataclasses.dataclass
class Sighting:
    """One person in one frame: `region` (4,), `score`, and `look`, a colour histogram of norm 1."""

    frame: int
    region: np.ndarray
    score: float
    look: np.ndarray


@dataclasses.dataclass
class PersonTrack:
    """One person over the video: sightings in ascending order of their frames."""

    sightings: list[Sighting]

    @property
    def frames(self) -> np.ndarray:
        return np.array([s.frame for s in self.sightings])

    @property
    def regions(self) -> np.ndarray:
        return np.array([s.region for s in self.sightings])

    @property
    def look(self) -> np.ndarray:
        mean = np.mean([s.look for s in self.sightings], axis=0)
        return mean / max(np.linalg.norm(mean), 1e-9)

    def prominence(self, image_size: tuple[int, int]) -> float:
        """Scores of the sightings summed, each times the region's share of the image's diagonal."""
        diagonal = np.hypot(*image_size)
        return sum(s.score * min(s.region[2] / diagonal, 1) for s in self.sightings)


def look_at(image: np.ndarray, region: np.ndarray) -> np.ndarray:
    """Returns a histogram of the colours in the middle of a region, which the trunk and the thighs
    fill.

    Args:
      image: (height, width, 3) uint8. region: (4,) in pixels of that image.

    Returns:
      (216,) float32 of norm 1, over a grid of 6 shades of each colour.
    """
    # Between hips and rim of the circle lies the trunk; a quarter of the side around that.
    right, down = square.axes(region)
    steps = np.linspace(-0.5, 0.5, 24)
    across, along = np.meshgrid(steps * 0.16, steps * 0.3 - 0.08)
    places = region[:2] + region[2] * (across[..., None] * right + along[..., None] * down)
    x, y = np.rint(places).astype(int).reshape(-1, 2).T
    inside = (x >= 0) & (y >= 0) & (x < image.shape[1]) & (y < image.shape[0])
    shades = image[y[inside], x[inside]].astype(int) * _BINS // 256
    counts = np.bincount(shades @ (_BINS**2, _BINS, 1), minlength=_BINS**3).astype(np.float32)
    # Square roots keep one plain wall from outweighing everything else.
    root = np.sqrt(counts)
    return root / max(np.linalg.norm(root), 1e-9)


def see(
    frame: int, people: Sequence[Person], image: np.ndarray, scale: np.ndarray
) -> list[Sighting]:
    """Returns the detector's people as sightings, in pixels of the video.

    Args:
      frame: number of the frame. people: what was found in the copy.
      image: a copy of the frame at any size. scale: (2,) pixels of the copy per pixel of the video.
    """
    found = []
    for person in people:
        region = square.from_points(person.hips, person.rim)
        if np.isfinite(region).all() and region[2] > 0:
            look = look_at(image, region)
            region = square.from_points(person.hips / scale, person.rim / scale)
            found.append(Sighting(frame, region, person.score, look))
    return found


def follow(sightings: Sequence[Sequence[Sighting]], fps: float) -> list[PersonTrack]:
    """Joins sightings of the same person, frame by frame and then over gaps in time.

    Args:
      sightings: those of each frame that was looked at, in order. fps: of the video.
    """
    tracks: list[PersonTrack] = []
    open_tracks: list[PersonTrack] = []
    for seen in sightings:
        if not seen:
            continue
        now = seen[0].frame
        open_tracks = [t for t in open_tracks if (now - t.frames[-1]) / fps <= _LONGEST_GAP / 3]
        pairs = [
            (_difference(track, new, fps), i, j)
            for i, track in enumerate(open_tracks)
            for j, new in enumerate(seen)
        ]
        joined = set()
        taken = set()
        for difference, i, j in sorted(pairs):
            if np.isfinite(difference) and i not in taken and j not in joined:
                open_tracks[i].sightings.append(seen[j])
                taken.add(i)
                joined.add(j)
        fresh = [
            PersonTrack([new])
            for j, new in enumerate(seen)
            if j not in joined and new.score >= _SURE
        ]
        tracks += fresh
        open_tracks += fresh
    return _join_over_gaps(tracks, fps)


def _difference(track: PersonTrack, new: Sighting, fps: float) -> float:
    """Returns how unlike a sighting is to what the track leads one to expect; infinite if
    impossible.
    """
    last = track.sightings[-1]
    seconds = (new.frame - last.frame) / fps
    side = min(last.region[2], new.region[2])
    moved = _distance(track, new, fps)
    growth = abs(np.log(new.region[2] / last.region[2]))
    turned = abs((new.region[3] - last.region[3] + np.pi) % (2 * np.pi) - np.pi)
    alike = float(track.sightings[-1].look @ new.look)
    if (
        moved > min(_REACH + _SPEED * seconds, _FARTHEST) * side
        or growth > np.log(_GROWTH) + seconds
        or turned > _TURN[0] + _TURN[1] * seconds
        or alike < _ALIKE
    ):
        return np.inf
    return moved / side + 0.5 * growth + (1 - alike)


def _distance(track: PersonTrack, new: Sighting, fps: float) -> float:
    """Measures pixels to where the person was last, or would be if going on for 1 s at most."""
    last, velocity = track.sightings[-1], np.zeros(2)
    if len(track.sightings) > 1:
        before = track.sightings[-2]
        velocity = (last.region[:2] - before.region[:2]) / (last.frame - before.frame)
    stayed = new.region[:2] - last.region[:2]
    went_on = stayed - velocity * min(new.frame - last.frame, fps)
    return float(min(np.linalg.norm(stayed), np.linalg.norm(went_on)))


def _join_over_gaps(tracks: list[PersonTrack], fps: float) -> list[PersonTrack]:
    """Joins tracks that end and begin near each other and look alike, the most alike first."""
    tracks = sorted(tracks, key=lambda t: t.frames[0])
    while True:
        candidates = []
        for a in tracks:
            for b in tracks:
                gap = (b.frames[0] - a.frames[-1]) / fps
                if a is b or not 0 < gap <= _LONGEST_GAP:
                    continue
                first, last = b.sightings[0], a.sightings[-1]
                side = min(first.region[2], last.region[2])
                moved = _distance(a, first, fps) / side
                growth = abs(np.log(first.region[2] / last.region[2]))
                alike = float(a.look @ b.look)
                reach = min(_REACH + _SPEED * gap, _FARTHEST)
                near = moved <= reach and growth <= np.log(_GROWTH) + gap
                # A single sighting far from others is more often a mistake than a person.
                lasting = min(len(a.sightings), len(b.sightings)) > 1
                if near and lasting and alike >= _ALIKE_OVER_GAP:
                    candidates.append((alike - 0.2 * moved - 0.1 * gap, id(a), a, b))
        if not candidates:
            return tracks
        _, _, a, b = max(candidates, key=lambda c: c[0])
        a.sightings += b.sightings
        tracks = [t for t in tracks if t is not b]


def choose(
    tracks: Sequence[PersonTrack], count: int, image_size: tuple[int, int], least_frames: float
) -> tuple[list[PersonTrack], int]:
    """Returns the people most in view, in the order in which they appear (from left to right if at
    once).

    Args:
      count: how many at most. least_frames: shorter tracks are ghosts, unless all are.

    Returns:
      The chosen tracks, and how many were dropped as ghosts.
    """
    lasting = [t for t in tracks if t.frames[-1] - t.frames[0] + 1 >= least_frames]
    if not lasting and tracks:
        lasting = [max(tracks, key=lambda t: t.prominence(image_size))]
    best = sorted(lasting, key=lambda t: -t.prominence(image_size))[:count]
    ordered = sorted(best, key=lambda t: (t.frames[0], t.regions[0, 0]))
    return ordered, len(tracks) - len(lasting)
