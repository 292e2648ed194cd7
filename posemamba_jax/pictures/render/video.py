"""Videos in and out through FFmpeg: frames of a clip as MP4 or GIF."""

import dataclasses
import itertools
import os
import re
import subprocess
import tempfile
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import imageio_ffmpeg
import numpy as np

from posemamba_jax.errors import UserError
from posemamba_jax.files import writing
from posemamba_jax.pictures.render.scene import exact_frame_rate

# Browsers slow a GIF down to 10 frames per second if its delays are under two hundredths.
MAX_GIF_RATE = 50
# Named, because players guess the colours of small videos differently.
_COLORS = ("-vf", "scale=out_color_matrix=bt709:out_range=tv", "-colorspace", "bt709")
_COLORS += ("-color_primaries", "bt709", "-color_trc", "bt709")


class EncodingError(UserError, RuntimeError):
    """FFmpeg could not write a file; the message names it and what FFmpeg said first."""

    def __init__(self, path, said: bytes):
        lines = [line.strip() for line in said.decode(errors="replace").splitlines()]
        first = next((line for line in lines if line), "it was ended from outside")
        # Without the address of the part of FFmpeg that said it.
        first = re.sub(r"^(\[[^]]*\] *)+", "", first)
        super().__init__(f"{path}: FFmpeg failed: {first[:300]}")


def probe_video(path) -> tuple[tuple[int, int], Fraction]:
    """Finds the size (width, height) and frame rate of a video as it is shown.

    A portrait video from a phone is stored lying down with a rotation beside it; the size is that
    of the upright picture.

    Raises:
      FileNotFoundError: there is no such file.
      ValueError: the file is not a video.
    """
    frames = _open_video(path, [])
    try:
        meta = next(frames)
    finally:
        frames.close()
    if not meta["fps"]:
        raise ValueError(f"{path}: the video does not say its frame rate")
    return tuple(meta["size"]), exact_frame_rate(meta["fps"])


def read_video(path, size: tuple[int, int]) -> Iterator[np.ndarray]:
    """Yields every stored frame of a video, upright, as (height, width, 3) uint8.

    Args:
      path: the video.
      size: (width, height) to scale the frames to.

    Frames are neither dropped nor repeated to even out the rate, so that frame i is the one that a
    detector counted as frame i.

    Raises:
      FileNotFoundError: there is no such file.
      ValueError: the file is not a video.
    """
    width, height = size
    scale = ["-vf", f"scale={width}:{height}:flags=area,setsar=1", "-fps_mode", "passthrough"]
    frames = _open_video(path, scale)
    try:
        next(frames)
        for frame in frames:
            yield np.frombuffer(frame, np.uint8).reshape(height, width, 3)
    finally:
        frames.close()


def _open_video(path, output_params: list[str]):
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such video")
    # An absolute path cannot be mistaken for an option or for one of FFmpeg's URL schemes.
    frames = imageio_ffmpeg.read_frames(str(path.resolve()), output_params=output_params)

    def guarded():
        try:
            yield from frames
        except (OSError, RuntimeError, IndexError, KeyError) as error:
            raise ValueError(f"{path}: not a video that FFmpeg can read") from error

    return guarded()


@dataclasses.dataclass(frozen=True)
class Film:
    """A small copy of a video for a page: the bytes of an MP4, its length, whether it has sound."""

    data: bytes
    seconds: Fraction
    sound: bool


def make_film(path, fps: Fraction, num_frames: int, *, longest: int = 480, rate: int = 900) -> Film:
    """Copies the first frames of a video, with its sound, small enough to live inside a page.

    Every stored frame is shown for 1 / `fps` seconds, so that frame i is at i / `fps` whatever
    times the original has, and every half second begins a frame that can be jumped to.

    Args:
      path: the video.
      fps: frames per second of the copy.
      num_frames: at most so many frames.
      longest: pixels of the longer side; smaller videos stay as they are.
      rate: at most so many kilobits per second.

    Raises:
      FileNotFoundError, ValueError: there is no such video.
      EncodingError: FFmpeg failed.
    """
    (width, height), _ = probe_video(path)
    scale = min(1.0, longest / max(width, height))
    size = tuple(max(2, round(side * scale / 2) * 2) for side in (width, height))
    encode = ["-c:v", "libx264", "-preset", "medium", "-crf", "28", "-pix_fmt", "yuv420p"]
    encode += ["-maxrate", f"{rate}k", "-bufsize", f"{2 * rate}k"]
    encode += ["-g", str(max(1, round(fps / 2))), *_COLORS, "-movflags", "+faststart"]
    written = 0

    def frames():
        nonlocal written
        for frame in itertools.islice(read_video(path, size), num_frames):
            yield frame
            written += 1

    sound = path if has_sound(path) else None
    with tempfile.TemporaryDirectory() as folder:
        part = os.path.join(folder, "film.mp4")
        seconds = num_frames / fps
        encode.append(part)
        _encode(path, frames(), size, fps, encode, pixels="rgb24", sound=sound, seconds=seconds)
        data = Path(part).read_bytes()
    return Film(data, written / fps, sound is not None)


def has_sound(path) -> bool:
    """Tells whether a video has a sound track, by what FFmpeg says about it."""
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-hide_banner", "-i", str(Path(path).resolve())]
    said = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True).stderr
    return re.search(rb"Stream #\S+: Audio:", said) is not None


def write_mp4(
    path, frames, size: tuple[int, int], fps: Fraction, *, sound=None, seconds=None
) -> None:
    """Writes frames as H.264 in yuv420p, which everything plays.

    Args:
      path: the file; it appears once it is complete.
      frames: iterable of (height, width, 4) uint8 RGBA arrays.
      size: (width, height), even.
      fps: the frame rate, kept exactly.
      sound: a video whose sound is taken, from its beginning and for `seconds`; None is silent.

    Raises:
      EncodingError: FFmpeg failed; what was there stays.
    """
    encode = ["-c:v", "libx264", "-preset", "veryfast", "-crf", "18", "-pix_fmt", "yuv420p"]
    encode += [*_COLORS, "-movflags", "+faststart"]
    with writing.replacing(path) as part:
        encode += ["-f", "mp4", str(part.resolve())]
        _encode(path, frames, size, fps, encode, sound=sound, seconds=seconds)


def write_gif(path, frames, size: tuple[int, int], fps: Fraction) -> None:
    """Writes frames as an endlessly repeating GIF with one palette made for them.

    A GIF counts time in hundredths of a second: single frames are up to half of one early or late,
    the average rate is kept. See `gif_stride` for rates over `MAX_GIF_RATE`.

    Args and errors as for `write_mp4`; `fps` is at most `MAX_GIF_RATE`.
    """
    with tempfile.TemporaryDirectory() as folder, writing.replacing(path) as part:
        # Kept without loss in between: the palette is chosen from all frames before the first one
        # is written, and they need not fit in memory.
        whole, palette = os.path.join(folder, "whole.nut"), os.path.join(folder, "palette.png")
        lossless = ["-c:v", "libx264rgb", "-preset", "ultrafast", "-qp", "0"]
        _encode(path, frames, size, fps, [*lossless, "-pix_fmt", "rgb24", whole])
        _run_ffmpeg(path, ["-i", whole, "-vf", "palettegen=reserve_transparent=0", palette])
        paint = "paletteuse=dither=sierra2_4a:diff_mode=rectangle"
        use = ["-i", whole, "-i", palette, "-lavfi", paint]
        _run_ffmpeg(path, [*use, "-loop", "0", "-f", "gif", str(part.resolve())])


def gif_stride(fps: Fraction) -> int:
    """Finds every how manieth frame a GIF shows, so that its rate stays within `MAX_GIF_RATE`."""
    return int(np.ceil(fps / MAX_GIF_RATE))


def _command(arguments: list[str]) -> list[str]:
    return [imageio_ffmpeg.get_ffmpeg_exe(), "-hide_banner", "-loglevel", "error", "-y", *arguments]


def _run_ffmpeg(path, arguments: list[str]) -> None:
    """Runs FFmpeg, which takes part in writing `path`."""
    done = subprocess.run(_command(arguments), stdin=subprocess.DEVNULL, capture_output=True)
    if done.returncode:
        raise EncodingError(path, done.stderr)


def _encode(
    path,
    frames,
    size: tuple[int, int],
    fps: Fraction,
    arguments: list[str],
    *,
    pixels: str = "rgba",
    sound=None,
    seconds: Fraction | None = None,
) -> None:
    """Runs FFmpeg on raw frames, with the sound of another file for at most `seconds` if given.

    `path` is what messages name.
    """
    width, height = size
    source = ["-f", "rawvideo", "-pix_fmt", pixels, "-s", f"{width}x{height}"]
    source += ["-framerate", f"{fps.numerator}/{fps.denominator}", "-i", "-"]
    if sound is None:
        source += ["-an"]
    else:
        source += ["-i", str(Path(sound).resolve()), "-map", "0:v", "-map", "1:a:0"]
        source += ["-c:a", "aac", "-b:a", "96k", "-ac", "2", "-t", f"{float(seconds):.6f}"]
    # A file and not a pipe for what it says, so that nobody waits for anybody.
    with tempfile.TemporaryFile() as said:
        process = subprocess.Popen(
            _command([*source, *arguments]), stdin=subprocess.PIPE, stderr=said
        )
        try:
            for frame in frames:
                process.stdin.write(memoryview(np.ascontiguousarray(frame)).cast("B"))
            process.stdin.close()
        except BrokenPipeError:
            pass  # FFmpeg left early; its exit status and words tell why
        except BaseException:
            process.kill()
            process.wait()
            raise
        if process.wait():
            said.seek(0)
            raise EncodingError(path, said.read())
