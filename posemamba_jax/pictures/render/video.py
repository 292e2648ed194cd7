"""Videos in and out through FFmpeg: frames of a clip as MP4 or GIF."""

import os
import subprocess
import tempfile
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import imageio_ffmpeg
import numpy as np

from posemamba_jax.files import writing
from posemamba_jax.pictures.render.scene import exact_frame_rate

# Browsers slow a GIF down to 10 frames per second if its delays are under two hundredths.
MAX_GIF_RATE = 50


def probe_video(path) -> tuple[tuple[int, int], Fraction]:
    """Size (width, height) and frame rate of a video as it is shown.

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


def write_mp4(path, frames, size: tuple[int, int], fps: Fraction) -> None:
    """Writes frames as H.264 in yuv420p, which everything plays.

    Args:
      path: the file; it appears once it is complete.
      frames: iterable of (height, width, 4) uint8 RGBA arrays.
      size: (width, height), even.
      fps: the frame rate, kept exactly.

    Raises:
      RuntimeError: FFmpeg failed; the message ends with what it said.
    """
    encode = ["-c:v", "libx264", "-preset", "veryfast", "-crf", "18", "-pix_fmt", "yuv420p"]
    # Named, because players guess the colours of small videos differently.
    encode += ["-vf", "scale=out_color_matrix=bt709:out_range=tv", "-colorspace", "bt709"]
    encode += ["-color_primaries", "bt709", "-color_trc", "bt709", "-movflags", "+faststart"]
    with writing.replacing(path) as part:
        _encode(frames, size, fps, [*encode, "-f", "mp4", str(part.resolve())])


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
        _encode(frames, size, fps, [*lossless, "-pix_fmt", "rgb24", whole])
        _run_ffmpeg(["-i", whole, "-vf", "palettegen=reserve_transparent=0", palette])
        paint = "paletteuse=dither=sierra2_4a:diff_mode=rectangle"
        use = ["-i", whole, "-i", palette, "-lavfi", paint]
        _run_ffmpeg([*use, "-loop", "0", "-f", "gif", str(part.resolve())])


def gif_stride(fps: Fraction) -> int:
    """Every how manieth frame a GIF shows, so that its rate stays within `MAX_GIF_RATE`."""
    return int(np.ceil(fps / MAX_GIF_RATE))


def _command(arguments: list[str]) -> list[str]:
    return [imageio_ffmpeg.get_ffmpeg_exe(), "-hide_banner", "-loglevel", "error", "-y", *arguments]


def _run_ffmpeg(arguments: list[str]) -> None:
    done = subprocess.run(_command(arguments), stdin=subprocess.DEVNULL, capture_output=True)
    if done.returncode:
        raise RuntimeError(f"FFmpeg failed: {done.stderr.decode(errors='replace')[-2000:].strip()}")


def _encode(frames, size: tuple[int, int], fps: Fraction, arguments: list[str]) -> None:
    width, height = size
    source = ["-f", "rawvideo", "-pix_fmt", "rgba", "-s", f"{width}x{height}"]
    source += ["-framerate", f"{fps.numerator}/{fps.denominator}", "-i", "-"]
    # A file and not a pipe for what it says, so that nobody waits for anybody.
    with tempfile.TemporaryFile() as said:
        process = subprocess.Popen(
            _command([*source, "-an", *arguments]), stdin=subprocess.PIPE, stderr=said
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
            words = said.read().decode(errors="replace")[-2000:].strip()
            raise RuntimeError(f"FFmpeg failed: {words}")
