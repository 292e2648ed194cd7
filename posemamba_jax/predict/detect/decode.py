"""Reads the frames of a video through FFmpeg, upright, each stored frame once."""

import dataclasses
import re
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import imageio_ffmpeg
import numpy as np

from posemamba_jax.errors import UserError

# Containers by their first bytes: the box of ISO media (MP4, MOV), Matroska, AVI (RIFF), MPEG
# program and transport streams, Ogg, ASF, FLV, GIF.
_MAGIC = (
    (4, b"ftyp"), (4, b"moov"), (4, b"mdat"), (4, b"wide"), (4, b"free"), (0, b"\x1a\x45\xdf\xa3"),
    (0, b"RIFF"), (0, b"\x00\x00\x01\xba"), (0, b"\x00\x00\x01\xb3"), (0, b"\x47\x40"),
    (0, b"OggS"), (0, b"\x30\x26\xb2\x75"), (0, b"FLV\x01"), (0, b"GIF8"),
)  # fmt: skip
_SUFFIXES = frozenset(
    f".{name}"
    for name in (
        *("mp4", "mov", "m4v", "mkv", "webm", "avi", "mpg", "mpeg"),
        *("ts", "mts", "m2ts", "ogv", "wmv", "flv", "gif", "3gp"),
    )
)
# Frames further apart than this share of the mean are a variable frame rate.
_EVEN = 0.5


class VideoError(UserError, ValueError):
    """A video cannot be read; the message is one line that names the file."""


@dataclasses.dataclass(frozen=True)
class Video:
    """A video as it is shown: size in pixels after rotation, and when its frames are shown.

    times: (frames,) seconds, ascending from 0.
    """

    path: Path
    size: tuple[int, int]
    fps: float
    times: np.ndarray

    @property
    def num_frames(self) -> int:
        return len(self.times)

    @property
    def gaps(self) -> tuple[float, float] | None:
        """Shortest and longest time between frames where the frame rate varies, else None."""
        gaps = np.diff(self.times)
        if len(gaps) < 2 or (np.abs(gaps * self.fps - 1) <= _EVEN).all():
            return None
        return float(gaps.min()), float(gaps.max())


def is_video(path: Path) -> bool:
    """Returns true for a file that begins as videos do, or whose name ends as theirs."""
    return path.suffix.lower() in _SUFFIXES or has_video_mark(path)


def has_video_mark(path: Path) -> bool:
    """Returns true for a file that begins as videos do."""
    try:
        if not path.is_file():  # Opening a pipe would wait for its writer.
            return False
        with path.open("rb") as file:
            start = file.read(16)
    except OSError:
        return False
    return any(start[at : at + len(mark)] == mark for at, mark in _MAGIC)


def open_video(path: Path | str) -> Video:
    """Returns the size, frame rate and times of a video, from its headers and index; nothing is
    decoded.

    Raises:
      VideoError: the file is missing, empty, cut short or no video.
    """
    path = Path(path)
    if not path.is_file():
        raise VideoError(f"{path}: no such video")
    if not path.stat().st_size:
        raise VideoError(f"{path}: the file is empty")
    # An absolute path cannot be mistaken for an option or for one of FFmpeg's URL schemes.
    source = ["-i", f"file:{path.resolve()}", "-map", "0:v:0"]
    listed = _run([*source, "-c", "copy", "-copyts", "-f", "framecrc", "-"])
    shown = _run([*source, "-frames:v", "1", "-f", "rawvideo", "-pix_fmt", "gray", "-"])
    times = _packet_times(listed.stdout.decode("ascii", "replace"))
    said = shown.stderr.decode("utf-8", "replace")
    size = re.findall(r"Video: rawvideo.*? (\d+)x(\d+)[, ]", said)
    if not len(times) or not size or not shown.stdout:
        raise VideoError(f"{path}: {_reason(path, said)}")
    fps = (len(times) - 1) / (times[-1] - times[0]) if len(times) > 1 and times[-1] > 0 else 0
    rate = _rate_of_header(said)
    if rate is not None and abs(rate - fps) < 0.02 * fps:
        fps = rate
    if not fps:
        raise VideoError(f"{path}: one frame only, or frames without times; expected a video")
    return Video(path, (int(size[0][0]), int(size[0][1])), float(fps), times - times[0])


def read_frame_rate(path: Path) -> float | None:
    """Returns the frames per second that a video's header says, None where it says none.

    FFmpeg is asked once, and reads no frame.
    """
    done = _run(["-i", f"file:{path.resolve()}"])
    return _rate_of_header(done.stderr.decode("utf-8", "replace"))


def _rate_of_header(said: str) -> float | None:
    rate = re.search(r"Video:.*? ([\d.]+) fps", said)
    return _exact(float(rate[1])) if rate and float(rate[1]) > 0 else None


def _exact(fps: float) -> float:
    """Returns the rate that FFmpeg's two decimals stand for: 29.97 is 30000 / 1001."""
    for base in (24, 30, 48, 60, 120, 240):
        if abs(fps - base * 1000 / 1001) < 0.006:
            return base * 1000 / 1001
    return fps


def _packet_times(listing: str) -> np.ndarray:
    """Returns ascending times in seconds of the packets in a `framecrc` listing."""
    base = re.search(r"#tb 0: (\d+)/(\d+)", listing)
    stamps = re.findall(r"^0, *-?\d+, *(-?\d+),", listing, re.M)
    if base is None or int(base[2]) == 0:
        return np.zeros(0)
    return np.sort(np.array(stamps, np.float64)) * int(base[1]) / int(base[2])


def read_frames(
    video: Video,
    size: tuple[int, int],
    every: int = 1,
) -> Iterator[np.ndarray]:
    """Yields (height, width, 3) uint8 frames, decoded while the caller works on earlier ones.

    Args:
      video: what to read.
      size: (width, height) to scale to.
      every: 2 for frames 0, 2, 4 and so on.
    """
    filters = [f"select=not(mod(n\\,{every}))"] if every > 1 else []
    filters.append(f"scale={size[0]}:{size[1]}:flags=area,setsar=1")
    width, height = size
    command = _command([
        "-i", f"file:{video.path.resolve()}", "-map", "0:v:0", "-vf", ",".join(filters),
        "-fps_mode", "passthrough", "-f", "rawvideo", "-pix_fmt", "rgb24", "-",
    ])  # fmt: skip
    # A file and not a pipe for what it says, so that nobody waits for anybody.
    with tempfile.TemporaryFile() as said:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=said,
            bufsize=width * height * 3,
        )  # fmt: skip
        try:
            while len(data := process.stdout.read(width * height * 3)) == width * height * 3:
                yield np.frombuffer(data, np.uint8).reshape(height, width, 3)
        finally:
            process.kill()
            process.stdout.close()
            process.wait()


def _command(arguments: list[str]) -> list[str]:
    return [imageio_ffmpeg.get_ffmpeg_exe(), "-hide_banner", "-nostdin", *arguments]


def _run(arguments: list[str]) -> subprocess.CompletedProcess:
    return subprocess.run(_command(arguments), stdin=subprocess.DEVNULL, capture_output=True)


def _reason(path: Path, said: str) -> str:
    """Says why FFmpeg cannot read a file, in a few words."""
    if "moov atom not found" in said and has_video_mark(path):
        return "the video is cut short (its index, which comes last, is missing)"
    if "matches no streams" in said:
        return "the file has no picture, only sound"
    return "not a video that FFmpeg can read"
