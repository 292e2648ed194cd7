"""predict.py --webcam and --stream: the newest frame, bounded delay, and an end that saves all."""

import dataclasses
import functools
import os
import subprocess

import blob_videos as blobs
import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from moving_people import WINDOW, fake_predict, walking

from posemamba_jax.errors import UserError
from posemamba_jax.predict import live, live_source, live_view
from posemamba_jax.predict.detect import decode
from posemamba_jax.predict.options import PredictOptions, parse_arguments
from posemamba_jax.predict.run import run

SIZE, FPS = (96, 64), 25


class Clock:
    """A clock that stands still unless somebody works."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


class PlayedFrames:
    """Plays frames by a clock; stands for the source and for what holds its newest frame."""

    name = "--stream played"

    def __init__(self, pixels, clock: Clock, stop: BaseException | None = None):
        self._pixels, self._clock, self._stop = pixels, clock, stop
        self.size, self.frames = (pixels.shape[2], pixels.shape[1]), self
        self.dropped, self.is_closed, self._next, self._start = 0, False, 0, None

    def take(self):
        self._start = self._clock() if self._start is None else self._start
        newest = max(int((self._clock() - self._start) * FPS + 1e-6), self._next)
        if newest >= len(self._pixels):
            if self._stop is not None:
                raise self._stop
            return None
        self._clock.now = max(self._clock(), self._start + newest / FPS)
        self.dropped += newest - self._next
        self._next = newest + 1
        return live_source.Frame(newest, self._start + newest / FPS, self._pixels[newest])

    def close(self):
        self.is_closed = True


@dataclasses.dataclass
class Shown:
    """A window that remembers what it showed."""

    found: list = dataclasses.field(default_factory=list)
    closes_after: int = 10**9
    is_closed: bool = False

    def show(self, pixels, joints, pose) -> bool:
        self.found.append((joints, pose))
        return len(self.found) < self.closes_after

    def close(self):
        self.is_closed = True


@pytest.fixture
def play(monkeypatch, tmp_path):
    """(frames, seconds that the landmarks of one take) -> the source, the window, the results."""

    def play(pixels, seconds, *, stop=None, view=None, **options):
        clock, view = Clock(), view or Shown()
        source = PlayedFrames(pixels, clock, stop)
        calls = []

        def locate(images):
            clock.now += seconds
            return blobs.locate(images)

        def detect(images):
            calls.append(len(images) == 1)  # Whole images; then come squares of them.
            return blobs.detect(images)

        engine = dataclasses.replace(blobs.ENGINE, locate=locate, detect=detect)
        monkeypatch.setattr(live, "prepare_engine", lambda *_: engine)
        opened = {
            "prepare_source": lambda _: lambda: source,
            "open_view": lambda _: view,
            "clock": clock,
        }
        watch = functools.partial(live.watch, **opened)
        monkeypatch.setattr("posemamba_jax.predict.run.live.watch", watch)
        settings = {"outputs": "npz", "trajectory": "none", "stream": "played", **options}
        run(
            PredictOptions(checkpoint="fake", out=str(tmp_path / "out"), **settings),
            load=lambda _: (fake_predict, WINDOW),
        )
        with np.load(tmp_path / "out" / "person_1.npz") as arrays:
            return source, view, dict(arrays), sum(calls) - 1  # One warms up.

    return play


@pytest.mark.parametrize("seconds", [0.0, 0.1])
def test_the_newest_frame_is_taken_and_the_delay_bounded(play, capsys, seconds):
    total = 75
    source, view, result, detections = play(blobs.draw(total, SIZE), seconds)
    said = capsys.readouterr().out
    assert source.is_closed and view.is_closed
    shown = len(view.found)
    if seconds == 0:
        assert source.dropped == 0 and shown == total
    else:
        assert 20 <= shown <= 32 and source.dropped >= 43
    # As placed in the frames that were taken, and on straight lines between.
    roots = result["poses_2d"][:, 0, :2]
    assert total - 4 <= len(roots) <= total and result["fps"] == pytest.approx(FPS, rel=1e-6)
    assert np.linalg.norm(roots - blobs.places(total, SIZE)[: len(roots)], axis=1).max() < 1
    assert result["observed"].sum() == shown
    assert detections == 1  # After that the person is followed.
    lines = [line for line in said.splitlines() if "frames per second of" in line]
    assert 2 <= len(lines) <= 3
    for line in lines:
        delay = float(line.split(" ms behind")[0].split()[-1])
        # The look-ahead, the frame's own work, and one frame that was under way when it came.
        assert delay <= 1000 * (5 / FPS + 2 * seconds + 1 / FPS) + 1, line


def test_a_person_who_goes_and_comes_back_elsewhere(play):
    pixels = blobs.draw(40, SIZE, absent=range(15, 25))
    pixels[25:] = pixels[25:, ::-1, ::-1]
    _, view, result, detections = play(pixels, 0.0, max_gap=2)
    assert result["segments"].tolist() == [[0, 15], [25, 40]]
    assert detections == 12  # At first, while nobody is there, and when somebody comes.
    assert [pose is not None for _, pose in view.found] == [True] * 15 + [False] * 10 + [True] * 15


def test_ctrl_c_saves_what_was_seen(play):
    source, _, result, _ = play(blobs.draw(20, SIZE), 0.0, stop=KeyboardInterrupt())
    assert source.is_closed and len(result["poses_3d"]) == 20
    source, _, result, _ = play(blobs.draw(30, SIZE), 0.0, stop=SystemExit(130))
    assert len(result["poses_3d"]) == 30


def test_closing_the_window_ends_it(play):
    _, _, result, _ = play(blobs.draw(20, SIZE), 0.0, view=Shown(closes_after=12))
    assert len(result["poses_3d"]) == 12


def test_sigterm_saves_the_keypoints(play, tmp_path):
    with pytest.raises(SystemExit):
        play(blobs.draw(20, SIZE), 0.0, stop=SystemExit(75))
    assert (tmp_path / "out" / "keypoints.json").exists()
    assert not (tmp_path / "out" / "person_1.npz").exists()


def test_what_is_kept_is_bounded(play, monkeypatch, capsys):
    monkeypatch.setattr(live, "MOST_FRAMES", 20)
    _, _, result, _ = play(blobs.draw(60, SIZE), 0.0)
    assert len(result["poses_3d"]) == 20
    assert "only the last 20 frames were kept" in capsys.readouterr().out


def test_nobody(play):
    with pytest.raises(UserError, match="--stream played: nobody was found in 20 frames"):
        play(blobs.draw(20, SIZE, absent=range(20)), 0.0)


@pytest.mark.parametrize("delay", [0, 4])
def test_the_sliding_window_gives_the_pose_of_the_frame_it_names(delay):
    model = live.inference.LoadedModel(fake_predict, WINDOW)
    lifter = live.SlidingLifter(model, (640, 480), delay=delay, max_gap=5, flip=True)
    pixels = walking(3 * WINDOW)
    wanted = fake_predict(live.inference.normalise(pixels, (640, 480)))
    for number in range(0, len(pixels)):
        frame = live_source.Frame(number, number / FPS, None)
        lifted = lifter(frame, np.append(pixels[number], np.ones((17, 1)), axis=-1))
        assert lifted.number == max(number - delay, 0)
        assert lifted.time == pytest.approx(lifted.number / FPS)
        relative = wanted[lifted.number] - wanted[lifted.number, :1]
        np.testing.assert_allclose(lifted.pose, relative, atol=1e-5)


def test_a_slow_taker_gets_the_newest_frame():
    holder = live_source.NewestFrame()
    for number in range(5):
        holder.put(np.full((2, 2, 3), number, np.uint8), float(number))
    frame = holder.take()
    assert (frame.number, frame.time, frame.pixels.max()) == (4, 4.0, 4)
    assert (holder.came, holder.taken, holder.dropped) == (5, 1, 4)
    with pytest.raises(TimeoutError):
        holder.take(timeout=0)
    holder.end()
    assert holder.take() is None


@pytest.mark.parametrize("size", [(97, 65), (64, 96), (1600, 900)])
def test_a_file_is_played_to_its_end(tmp_path, size):
    path = blobs.encode(tmp_path / "clip.mkv", blobs.draw(4, size))
    source = live_source.LiveSource(live_source.stream_arguments(str(path)), "--stream clip")
    try:
        assert source.size == ((1280, 720) if size == (1600, 900) else size)
        frames = []
        while (frame := source.frames.take(timeout=20)) is not None:
            frames.append(frame)
        assert source.frames.came == 4 and (not frames or frames[-1].number == 3)
        assert all(frame.pixels.shape[:2] == source.size[::-1] for frame in frames)
    finally:
        source.close()


def test_the_rate_of_a_file_is_its_own(tmp_path, play):
    """However late its frames are taken; one that is given goes before."""
    path = blobs.encode(tmp_path / "clip.mp4", blobs.draw(5, SIZE), fps=20)
    frames = blobs.draw(30, SIZE)
    *_, from_file, _ = play(frames, 0.1, stream=str(path))
    assert from_file["fps"] == pytest.approx(20)
    *_, given, _ = play(frames, 0.1, stream=str(path), fps=50.0)
    assert given["fps"] == 50


def test_a_pipe(tmp_path):
    path = blobs.encode(tmp_path / "clip.mkv", blobs.draw(3, SIZE))
    os.mkfifo(tmp_path / "pipe")
    writer = subprocess.Popen(["cp", path, tmp_path / "pipe"])
    source = live_source.LiveSource(live_source.stream_arguments(str(tmp_path / "pipe")), "pipe")
    source.close()
    writer.kill()
    writer.wait()
    assert source.size == SIZE


def test_what_cannot_be_opened(tmp_path):
    (tmp_path / "text.mp4").write_text("no video")
    for option in ({"stream": str(tmp_path / "text.mp4")}, {"webcam": 987}):
        with pytest.raises(UserError, match=rf"--{next(iter(option))} .*: FFmpeg cannot read it"):
            live.prepare_source(PredictOptions(**option))()
    for option, words in [
        ({"stream": str(tmp_path / "absent")}, "no such file, pipe or device"),
        ({"webcam": 0, "people": 2}, "follow one person"),
        ({"webcam": 0, "detector": "rtmpose"}, "follow one person"),
        ({"webcam": 0, "video": "a.mp4"}, "--video"),
    ]:
        with pytest.raises(UserError, match=words):
            live.prepare_source(PredictOptions(**option))


def test_cameras_of_each_system():
    assert live_source.webcam_arguments(1, "linux")[-1] == "/dev/video1"
    assert live_source.webcam_arguments(0, "darwin")[-1] == "0:none"
    found = live_source.webcam_arguments(1, "win32", lambda: ["Front", "Back camera"])
    assert found == ["-f", "dshow", "-i", "video=Back camera"]
    with pytest.raises(UserError, match="no such camera; there are: Front"):
        live_source.webcam_arguments(1, "win32", lambda: ["Front"])


def test_the_command_line():
    assert parse_arguments(["--webcam"]).webcam == 0
    assert parse_arguments(["--webcam", "2", "--delay", "0"]).webcam == 2
    assert parse_arguments(["--stream", "-"]).stream == "-"
    for wrong in ([], ["a.mp4", "--webcam"], ["--webcam", "1", "--stream", "x"]):
        with pytest.raises(UserError, match="give one of"):
            parse_arguments(wrong)


def test_the_window_draws_who_is_there(monkeypatch):
    for name in ("DISPLAY", "WAYLAND_DISPLAY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(live_view.sys, "platform", "linux")
    assert live_view.open_view(SIZE) is None
    figure = Figure(figsize=(6, 3), dpi=50)
    canvas = FigureCanvasAgg(figure)
    view = live_view.PoseView(figure, (640, 480))

    def drawn(joints, pose):
        view.draw(np.full((480, 640, 3), 90, np.uint8), joints, pose)
        canvas.draw()
        return np.asarray(canvas.buffer_rgba()).astype(int)

    pixels = walking(1)[0]
    pose = np.concatenate([(pixels - pixels[0]) / 100, np.zeros((17, 1))], -1)
    nobody, somebody = drawn(None, None), drawn(pixels, pose)
    changed = np.abs(nobody - somebody).max(-1) > 30
    quarters = np.split(changed, 4, axis=1)  # The picture has two of them.
    assert quarters[0].any() and quarters[2].any() and quarters[3].any()
    assert not (np.abs(drawn(None, None) - nobody) > 0).any()


def test_a_header_tells_the_rate_and_is_asked_once(tmp_path, monkeypatch):
    frames = np.zeros((6, 64, 96, 3), np.uint8)
    path = blobs.encode(tmp_path / "clip.mp4", frames, fps="30000/1001")
    (tmp_path / "text.mp4").write_text("no video")
    asked, ask = [], decode._run
    monkeypatch.setattr(decode, "_run", lambda *a: asked.append(a) or ask(*a))
    assert decode.read_frame_rate(path) == 30000 / 1001
    assert len(asked) == 1
    assert decode.read_frame_rate(tmp_path / "text.mp4") is None
