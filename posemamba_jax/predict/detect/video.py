"""From a video to the landmarks of the people in it, looking at the whole video before deciding.

The first pass looks for people in every k-th frame and follows them over the video; who is most in
view is chosen. The second pass places their landmarks in every frame, in regions between those of
the frames before and after that were looked at. Decoding, cutting out and the networks run at once.
"""

import collections
import dataclasses
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
from PIL import Image

from posemamba_jax.predict.detect import detector, tracking
from posemamba_jax.predict.detect import landmarks as marks
from posemamba_jax.predict.detect import regions as square
from posemamba_jax.predict.detect.decode import Video, read_frames
from posemamba_jax.predict.detect.engines import Engine

# Seconds between the frames in which people are looked for.
_SECONDS_BETWEEN = 0.15
MIN_PRESENCE = 0.5
# Frames are read at this many pixels along their longer side at most, for landmarks and for people.
_LONGEST_SIDE = 1920
_COPY_SIDE = 640
# A region is cut out anew if the landmarks found in it suggest one that differs by more than this:
# centre and side as shares of the side, angle in radians.
_CENTRE, _SIDE, _ANGLE = 0.1, 1.25, 0.5

# Called with the number of frames done since the last call.
Report = Callable[[int], None]


@dataclasses.dataclass(frozen=True)
class PersonLandmarks:
    """One person's landmarks in the frames of a video.

    points: (frames, 33, 4) float32, x, y and z in pixels and visibility; NaN where the person was
      not seen.
    """

    points: np.ndarray

    @classmethod
    def nowhere(cls, num_frames: int) -> "PersonLandmarks":
        """Returns a person who was not seen yet."""
        return cls(np.full((num_frames, marks.NUM_LANDMARKS, 4), np.nan, np.float32))

    def put(self, frame: int, found: marks.Landmarks) -> None:
        """Notes what was found in a frame, if the person is there."""
        if frame < len(self.points) and found.presence >= MIN_PRESENCE:
            self.points[frame] = found.points

    @property
    def seen(self) -> np.ndarray:
        """(frames,) bool, frames in which the person was seen."""
        return np.isfinite(self.points[:, 0, 0])


def find_people(video: Video, engine: Engine, report: Report) -> list[list[tracking.Sighting]]:
    """Returns the people in every k-th frame of a video, k frames being about 0.15 s.

    Args:
      report: hears how many of the video's frames are done.
    """
    every = frames_between(video)
    size, scale = _shrink(video, _COPY_SIDE)

    locate = Locator(engine, 1 / scale)

    def look(frame: int, pixels: np.ndarray):
        """Returns the people in a frame, with the regions that their landmarks suggest."""
        image = Image.fromarray(pixels)
        seen = []
        for one in tracking.see(frame, detector.find(image, engine.detect), pixels, scale):
            region = locate.suggest(image, one.region)
            if region is not None:
                seen.append(dataclasses.replace(one, region=region))
        return seen

    sightings: list[list[tracking.Sighting]] = []
    with _Pool(engine.workers, 4 * engine.workers) as pool:
        for i, pixels in enumerate(read_frames(video, size, every)):
            for seen in pool.submit(look, i * every, pixels):
                sightings.append(seen)
                report(every)
        for seen in pool.finish():
            sightings.append(seen)
            report(every)
    return sightings


def frames_between(video: Video) -> int:
    """Returns k: how many frames there are from one in which people are looked for to the next."""
    return max(round(video.fps * _SECONDS_BETWEEN), 1)


def place_landmarks(
    video: Video,
    tracks: Sequence[tracking.PersonTrack],
    engine: Engine,
    report: Report,
) -> Iterator[tuple[int, int, marks.Landmarks]]:
    """Yields (frame, index of the track, landmarks of one person) in order of the frames.

    Args:
      video: the video. tracks: whom to look at, from `tracking.follow`.
      report: hears how many frames are done.
    """
    every = frames_between(video)
    size, _ = _shrink(video, _LONGEST_SIDE)
    guides = [_Guide(track, every) for track in tracks]
    locate = Locator(engine, np.array(video.size) / size)

    def work(items):
        """Places landmarks in items (frame, track, image, region), one batch."""
        found = locate([item[2] for item in items], np.array([item[3] for item in items]))
        return [(item[0], item[1], one) for item, one in zip(items, found, strict=True)]

    items = []
    with _Pool(engine.workers, 4 * engine.workers) as pool:
        for frame, pixels in enumerate(read_frames(video, size)):
            image = Image.fromarray(pixels)
            items += [
                (frame, i, image, g.at(frame)) for i, g in enumerate(guides) if g.covers(frame)
            ]
            while len(items) >= engine.batch_size:
                for done in pool.submit(work, items[: engine.batch_size]):
                    yield from done
                items = items[engine.batch_size :]
            report(1)
        if items:
            pool.add(work, items)
        for done in pool.finish():
            yield from done


def _shrink(video: Video, longest: int) -> tuple[tuple[int, int], np.ndarray]:
    """Returns a size whose longer side is at most `longest`, and what takes pixels of the video to
    it.
    """
    factor = min(longest / max(video.size), 1)
    width, height = (max(round(n * factor), 1) for n in video.size)
    return (width, height), np.array([width, height]) / video.size


class _Pool:
    """Threads that work ahead by a limited number of calls and give results in order."""

    def __init__(self, workers: int, limit: int):
        self._executor = ThreadPoolExecutor(workers)
        self._limit = limit
        self._pending: collections.deque[Future] = collections.deque()

    def __enter__(self) -> "_Pool":
        return self

    def __exit__(self, *_) -> None:
        self._executor.shutdown(wait=True, cancel_futures=True)

    def add(self, function, *arguments) -> None:
        """Starts a call."""
        self._pending.append(self._executor.submit(function, *arguments))

    def submit(self, function, *arguments) -> Iterator:
        """Starts a call; yields results of earlier ones once too many are under way."""
        self.add(function, *arguments)
        while len(self._pending) > self._limit:
            yield self._pending.popleft().result()

    def finish(self) -> Iterator:
        """Yields the results that are left."""
        while self._pending:
            yield self._pending.popleft().result()


class _Guide:
    """Where to look for one person in frames between those that the detector looked at."""

    def __init__(self, track: tracking.PersonTrack, every: int):
        self._frames, self._regions, self._every = track.frames, track.regions, every

    def covers(self, frame: int) -> bool:
        """Returns true from after the looked-at frame before the first sighting to before the one
        after.
        """
        return self._frames[0] - self._every < frame < self._frames[-1] + self._every

    def at(self, frame: int) -> np.ndarray:
        """Returns the region (4,) in a frame."""
        return square.interpolate(self._frames, self._regions, np.array([frame]))[0]


class Locator:
    """Cuts out regions and places landmarks in them; a second time where the region was poor.

    Regions and landmarks are in pixels of the video, `stretch` of which make one of the images.
    """

    def __init__(self, engine: Engine, stretch: np.ndarray):
        self._engine = engine
        self._stretch = float(stretch.mean())

    def __call__(self, images: Sequence[Image.Image], regions: np.ndarray) -> list[marks.Landmarks]:
        found = self._locate(images, regions)
        poor = np.flatnonzero(_differ(regions, found.regions) & (found.presence > MIN_PRESENCE))
        if len(poor):
            again = self._locate([images[i] for i in poor], found.regions[poor])
            better = again.presence >= found.presence[poor]
            for field in dataclasses.fields(marks.Landmarks):
                getattr(found, field.name)[poor[better]] = getattr(again, field.name)[better]
        return [
            marks.Landmarks(found.points[i], found.regions[i], found.presence[i])
            for i in range(len(images))
        ]

    def suggest(self, image: Image.Image, region: np.ndarray) -> np.ndarray | None:
        """Returns the region that the landmarks found in a region suggest, None if nobody is
        there.
        """
        (found,) = self([image], region[None])
        return found.regions if found.presence > MIN_PRESENCE else None

    def _locate(self, images, regions) -> marks.Landmarks:
        small = regions / np.array([self._stretch] * 3 + [1.0])
        cuts = [
            square.cut_out(image, region, marks.SIDE)
            for image, region in zip(images, small, strict=True)
        ]
        return marks.decode(self._engine.locate(np.stack(cuts)), regions)


def _differ(used: np.ndarray, suggested: np.ndarray) -> np.ndarray:
    """Returns (n,) bool, where regions differ so much that the landmarks gain from a second
    look.
    """
    moved = np.linalg.norm(used[:, :2] - suggested[:, :2], axis=-1) / used[:, 2]
    growth = np.abs(np.log(used[:, 2] / np.maximum(suggested[:, 2], 1e-6)))
    turned = np.abs((used[:, 3] - suggested[:, 3] + np.pi) % (2 * np.pi) - np.pi)
    return (moved > _CENTRE) | (growth > np.log(_SIDE)) | (turned > _ANGLE)
