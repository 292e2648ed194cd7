"""Lifts whoever stands before a camera, as it happens: predict.py --webcam and --stream.

The newest frame is always taken; those that come meanwhile are dropped, and count as frames in
which nobody was looked for. Landmarks are placed in the region that those of the frame before
suggest, and the detector looks at the whole image only when nobody is followed, which is
BlazePose's own way for live video. The lifting model sees the last frames of its length, and the
pose shown is the one `delay` frames before the newest, which the model knows some future of.

V. Bazarevsky et al., "BlazePose: On-device Real-time Body Pose tracking", arXiv:2006.10204
"""

import collections
import dataclasses
import functools
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np
from PIL import Image
from rich.console import Console

from posemamba_jax.data.joint_sets import to_h36m17
from posemamba_jax.errors import UserError
from posemamba_jax.files.reading import user_path
from posemamba_jax.predict import lift as inference
from posemamba_jax.predict.detect import detector, tracking
from posemamba_jax.predict.detect import landmarks as marks
from posemamba_jax.predict.detect import video as detection
from posemamba_jax.predict.detect.decode import read_frame_rate
from posemamba_jax.predict.detect.engines import Engine
from posemamba_jax.predict.from_video import KEYPOINTS, prepare_engine, say
from posemamba_jax.predict.inputs import by
from posemamba_jax.predict.keypoints import mediapipe
from posemamba_jax.predict.live_source import (
    Frame,
    LiveSource,
    NewestFrame,
    stream_arguments,
    webcam_arguments,
)
from posemamba_jax.predict.live_view import open_view
from posemamba_jax.predict.options import PredictOptions

# Frames of which landmarks are kept: half an hour at 30 frames per second, 30 MB.
MOST_FRAMES = 54_000
# Seconds between the lines that say how it goes.
_REPORT_EVERY = 1.0


class Source(Protocol):
    """Where frames come from."""

    name: str
    size: tuple[int, int]
    frames: NewestFrame

    def close(self) -> None:
        """Ends it."""


class View(Protocol):
    """A window that shows what is found."""

    def show(self, pixels: np.ndarray, joints: np.ndarray | None, pose: np.ndarray | None) -> bool:
        """Shows a frame; returns false once the window is closed."""

    def close(self) -> None:
        """Closes the window."""


class Lifted(NamedTuple):
    """A pose, the frame it belongs to and when that came.

    Attributes:
      pose: (17, 3) root-relative, in the model's units.
      number: of the frame. time: seconds, when it came.
    """

    pose: np.ndarray
    number: int
    time: float


class Follower:
    """Places the landmarks of one person, frame after frame."""

    def __init__(self, engine: Engine):
        self._engine = engine
        self._locate = detection.Locator(engine, np.ones(2))
        self._region: np.ndarray | None = None

    def __call__(self, pixels: np.ndarray) -> np.ndarray | None:
        """Returns landmarks (33, 4) in a frame, x, y and z in pixels and visibility; None if nobody
        is seen.

        Args:
          pixels: (height, width, 3) uint8.
        """
        image = Image.fromarray(pixels)
        was_followed = self._region is not None
        points = self._place(image) if was_followed else None
        if points is None:
            self._region = self._look(image, pixels)
            points = None if self._region is None else self._place(image)
        return points

    def _place(self, image: Image.Image) -> np.ndarray | None:
        (found,) = self._locate([image], self._region[None])
        is_there = found.presence >= detection.MIN_PRESENCE and np.isfinite(found.regions).all()
        self._region = found.regions if is_there else None
        return found.points if is_there else None

    def _look(self, image: Image.Image, pixels: np.ndarray) -> np.ndarray | None:
        """Returns the region of whoever is most in view."""
        people = detector.find(image, self._engine.detect)
        seen = tracking.see(0, people, pixels, np.ones(2))
        return max(seen, key=lambda s: s.score * s.region[2]).region if seen else None


class SlidingLifter:
    """Lifts the last frames of the model's length, dropped frames being bridged by straight lines.

    Args:
      model: what lifts.
      image_size: (width, height) in pixels.
      delay: how many frames before the newest the pose is taken from.
      max_gap: frames without the person after which everything before is forgotten.
      flip: average with the prediction of the mirrored input.
    """

    def __init__(
        self,
        model: inference.LoadedModel,
        image_size: tuple[int, int],
        *,
        delay: int,
        max_gap: int,
        flip: bool,
    ):
        self._model, self._window, self._image_size = model, model.window, image_size
        self._delay, self._max_gap, self._flip = min(delay, model.window - 1), max_gap, flip
        # One more than fit, so that the first frames of the window are bridged too.
        self._seen: collections.deque[tuple[int, float, np.ndarray]] = collections.deque(
            maxlen=model.window + 1
        )

    def __call__(self, frame: Frame, joints: np.ndarray) -> Lifted:
        """Takes what was seen in a frame; returns the pose of the one `delay` before it, or of the
        first one seen.

        Args:
          frame: newer than the one before. joints: (17, 3) pixels and confidence, finite.
        """
        if self._seen and frame.number - self._seen[-1][0] > self._max_gap + 1:
            self._seen.clear()
        self._seen.append((frame.number, frame.time, joints))
        known = np.array([number for number, _, _ in self._seen])
        wanted = frame.number - np.arange(self._window)[::-1]
        stack = np.stack([own for _, _, own in self._seen]).reshape(len(known), -1)
        lines = [np.interp(wanted, known, column) for column in stack.T]
        found = np.stack(lines, -1).reshape(self._window, *joints.shape)
        flat = self._model.prepare(found[..., :2], found[..., 2], self._image_size)
        poses = inference.lift(self._model.predict, flat, self._window, flip=self._flip)
        number = max(frame.number - self._delay, known[0])
        moment = float(np.interp(number, known, [moment for _, moment, _ in self._seen]))
        return Lifted(poses[number - frame.number - 1], int(number), moment)


def prepare_source(options: PredictOptions) -> Callable[[], LiveSource]:
    """Returns what opens the camera or the stream that the options name.

    Raises:
      UserError: there is none, or another option does not go with it; when opening, FFmpeg cannot.
    """
    for name in ("format", "joint_set", "coordinates", "clip", "image_size", "video"):
        if getattr(options, name) is not None:
            raise UserError(f"--{name}: says something about a keypoint file; leave it out")
    if options.people != 1 or options.detector == "rtmpose":
        raise UserError("--webcam and --stream: follow one person, with --detector jax or litert")
    if options.webcam is not None:
        arguments, name = webcam_arguments(options.webcam), f"--webcam {options.webcam}"
        return functools.partial(LiveSource, arguments, name)
    return functools.partial(
        LiveSource,
        stream_arguments(options.stream),
        f"--stream {options.stream}",
        uses_stdin=options.stream == "-",
    )


def watch(
    options: PredictOptions,
    model: inference.LoadedModel,
    out: Path,
    console: Console,
    *,
    prepare_source: Callable[[PredictOptions], Callable[[], Source]] = prepare_source,
    open_view: Callable[[tuple[int, int]], View | None] = open_view,
    clock: Callable[[], float] = time.monotonic,
) -> tuple[PredictOptions, list[str]]:
    """Lifts a camera's or stream's person live until it ends, Ctrl-C, or the window is closed.

    Args:
      options: what to do. model: what lifts. out: folder for the keypoint file.
      prepare_source, open_view, clock: what stands for the camera, the screen and the time.

    Returns:
      The options for lifting what was seen once more from the saved keypoints, and remarks.

    Raises:
      UserError: the source cannot be opened, or nobody was seen.
      SystemExit: SIGTERM came; the keypoints are in the file.
    """
    open_source = prepare_source(options)
    known_rate = _known_rate(options)
    engine = prepare_engine(options, console)
    with console.status("compiling"):
        _compile(engine, model)
    source = open_source()  # Not before: a file would play meanwhile.
    try:
        out.mkdir(parents=True, exist_ok=True)
        session = _Session(options, source, engine, model, clock, known_rate)
        view = open_view(source.size)
        if view is None:
            say("note: there is no display for a window; progress is printed only")
        say(f"{source.name}: {by(source.size)}; Ctrl-C ends it and saves what was seen")
        try:
            session.run(view)
        except (KeyboardInterrupt, SystemExit) as stop:
            if isinstance(stop, SystemExit) and stop.code != 130:  # Not Ctrl-C: end soon.
                session.save(out / KEYPOINTS)
                raise
        finally:
            if view is not None:
                view.close()
    finally:
        source.close()
    notes = session.save(out / KEYPOINTS)
    say(f"wrote {out / KEYPOINTS}")
    return dataclasses.replace(
        options, keypoints=str(out / KEYPOINTS), webcam=None, stream=None
    ), notes


def _known_rate(options: PredictOptions) -> float | None:
    """Finds the frame rate that was given or that a file says; None where it has to be measured."""
    if options.fps is not None:
        return options.fps
    path = user_path(options.stream or "")
    if not options.stream or not path.is_file():
        return None
    return read_frame_rate(path)  # If there is none, what plays the file says what is wrong.


def _compile(engine: Engine, model: inference.LoadedModel) -> None:
    """Runs everything once, so that the first frames do not wait for the compiler."""
    engine.detect(np.zeros((1, detector.SIDE, detector.SIDE, 3), np.uint8))
    engine.locate(np.zeros((1, marks.SIDE, marks.SIDE, 3), np.uint8))
    model.predict(np.zeros((1, model.window, 17, model.channels), np.float32))


class _Session:
    """What is seen from when watching begins, and how fast."""

    def __init__(
        self,
        options,
        source: Source,
        engine,
        model: inference.LoadedModel,
        clock,
        known_rate: float | None,
    ):
        self._source, self._clock, self._max_gap = source, clock, options.max_gap
        self._known_rate = known_rate
        self._follow = Follower(engine)
        self._lift = SlidingLifter(
            model,
            source.size,
            delay=options.delay,
            max_gap=options.max_gap,
            flip=options.flip,
        )
        self._seen: collections.deque[tuple[int, np.ndarray]] = collections.deque()
        self._forgot = False
        self._first: Frame | None = None
        self._last: Frame | None = None
        self._count = 0

    def run(self, view: View | None) -> None:
        """Takes frames until the source ends or the view is closed."""
        reported, count, delay, dropped = self._clock(), 0, None, self._source.frames.dropped
        while (frame := self._source.frames.take()) is not None:
            self._first, self._last = self._first or frame, frame
            self._count += 1
            points, joints, lifted = self._follow(frame.pixels), None, None
            if points is not None:
                self._remember(frame.number, points)
                joints = to_h36m17(points[:, [0, 1, 3]], "mediapipe33")
                lifted = self._lift(frame, joints)
            shown = None if joints is None else joints[:, :2]
            is_open = view is None or view.show(frame.pixels, shown, lifted and lifted.pose)
            now = self._clock()
            count, delay = count + 1, now - lifted.time if lifted else None
            if now - reported >= _REPORT_EVERY:
                late = "nobody is seen" if delay is None else f"{1000 * delay:.0f} ms behind"
                total = self._source.frames.dropped
                say(
                    f"{count / (now - reported):.1f} frames per second of {self.rate():.1f}, "
                    f"{late}, {total - dropped} dropped"
                )
                reported, count, dropped = now, 0, total
            if not is_open:
                return

    def _remember(self, number: int, points: np.ndarray) -> None:
        self._seen.append((number, points))
        while self._seen[0][0] <= number - MOST_FRAMES:
            self._seen.popleft()
            self._forgot = True

    def rate(self) -> float:
        """Frames per second that the source gave, taken or not."""
        if self._first is None or self._last.time <= self._first.time:
            return 30.0
        return (self._last.number - self._first.number) / (self._last.time - self._first.time)

    def save(self, path: Path) -> list[str]:
        """Writes the landmarks that were found, and returns remarks.

        Raises:
          UserError: nobody was found.
        """
        if not self._seen:
            raise UserError(
                f"{self._source.name}: nobody was found in {self._count} frames; people have to be "
                f"seen from head to hips and not too far away"
            )
        numbers = np.array([number for number, _ in self._seen])
        first = int(numbers[0]) if self._forgot else self._first.number
        total = int(numbers[-1]) - first + 1
        points = np.full((total, marks.NUM_LANDMARKS, 4), np.nan, np.float32)
        points[numbers - first] = [own for _, own in self._seen]
        # A slow machine takes a file's frames late; its own rate says what they show.
        rate = self._known_rate or self.rate()
        mediapipe.write(path, [points], self._source.size, rate, total)
        notes = []
        if self._forgot:
            notes.append(f"only the last {MOST_FRAMES} frames were kept")
        missed = total - len(numbers)
        if missed:
            notes.append(
                f"{missed} of {total} frames were dropped or show nobody; gaps of up to "
                f"{self._max_gap} frames are bridged (--max_gap)"
            )
        return notes
