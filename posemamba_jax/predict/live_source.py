"""Frames of a camera, a pipe or a stream as they come: only the newest one waits to be taken."""

import os
import re
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from typing import IO, NamedTuple

import imageio_ffmpeg
import numpy as np

from posemamba_jax.errors import UserError
from posemamba_jax.files.reading import user_path

# Frames are at most so many pixels along the longer side.
_LONGEST_SIDE = 1280
# Seconds within which a source has to give its first frame, since some wait for ever.
_FIRST_FRAME = 20.0


class Frame(NamedTuple):
    """A frame: its number in the source, counted from 0, when it came, and its pixels.

    Attributes:
      number: of frames that came before it, taken or not.
      time: seconds, by the clock of the source.
      pixels: (height, width, 3) uint8.
    """

    number: int
    time: float
    pixels: np.ndarray


class NewestFrame:
    """Holds the newest frame for whoever takes it; a newer one replaces one that was not taken.

    Attributes:
      came, taken: how many frames were put here, and how many were taken.
    """

    def __init__(self) -> None:
        self.came = self.taken = 0
        self._waiting: Frame | None = None
        self._ended = False
        self._change = threading.Condition()

    @property
    def dropped(self) -> int:
        """How many frames were replaced by newer ones before anybody took them."""
        return self.came - self.taken - (self._waiting is not None)

    def put(self, pixels: np.ndarray, now: float) -> None:
        """Puts a frame that came `now` in the place of the one that waits."""
        with self._change:
            self._waiting = Frame(self.came, now, pixels)
            self.came += 1
            self._change.notify_all()

    def end(self) -> None:
        """Says that no frame will come any more."""
        with self._change:
            self._ended = True
            self._change.notify_all()

    def take(self, timeout: float | None = None) -> Frame | None:
        """Waits for a frame and takes it.

        Returns:
          The newest frame; None after the last one.

        Raises:
          TimeoutError: none came within `timeout` seconds.
        """
        with self._change:
            if not self._change.wait_for(lambda: self._waiting or self._ended, timeout):
                raise TimeoutError
            frame, self._waiting = self._waiting, None
            self.taken += frame is not None
            return frame


class LiveSource:
    """Reads a source through FFmpeg in a thread, as fast as it gives frames.

    Args:
      arguments: what FFmpeg opens, such as `-f v4l2 -i /dev/video0`.
      name: the option and its value, for messages.
      uses_stdin: whether that is the standard input.
      clock: gives the time in seconds.

    Raises:
      UserError: there is no first frame.
    """

    def __init__(
        self,
        arguments: list[str],
        name: str,
        *,
        uses_stdin: bool = False,
        clock: Callable[[], float] = time.monotonic,
    ):
        self.name, self._clock = name, clock
        self.frames = NewestFrame()
        self._said = tempfile.TemporaryFile()  # noqa: SIM115 - closed by `close`
        # Every frame says its size, so nothing has to be opened twice to learn it. FFmpeg scales
        # all frames to the size of the first.
        width = f"'if(gte(iw,ih),min(iw,{_LONGEST_SIDE}),-1)'"
        height = f"'if(gte(iw,ih),-1,min(ih,{_LONGEST_SIDE}))'"
        self._process = subprocess.Popen(
            [
                imageio_ffmpeg.get_ffmpeg_exe(), "-hide_banner", "-nostdin", "-v", "error",
                *arguments, "-map", "0:v:0", "-vf", f"scale={width}:{height}",
                "-fps_mode", "passthrough", "-f", "image2pipe", "-c:v", "ppm", "-",
            ],
            stdin=None if uses_stdin else subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=self._said,
            start_new_session=True,  # Ctrl-C is for us.
        )  # fmt: skip
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()
        try:
            first = self.frames.take(_FIRST_FRAME)
        except TimeoutError:
            self.close()
            raise UserError(f"{name}: no frame came within {_FIRST_FRAME:.0f} s") from None
        except BaseException:
            self.close()
            raise
        if first is None:
            reason = self._reason()
            self.close()
            raise UserError(f"{name}: {reason}")
        self.size: tuple[int, int] = (first.pixels.shape[1], first.pixels.shape[0])

    def _read(self) -> None:
        try:
            while (pixels := read_ppm(self._process.stdout)) is not None:
                self.frames.put(pixels, self._clock())
        except ValueError:  # The pipe was closed.
            pass
        finally:
            self.frames.end()

    def _reason(self) -> str:
        """What FFmpeg said last, without the address of its part that said it."""
        self._process.wait()
        self._said.seek(0)
        lines = self._said.read().decode("utf-8", "replace").split("\n")
        said = [re.sub(r"^\[[^]]*\] *", "", line).strip() for line in lines if line.strip()]
        return f"FFmpeg cannot read it ({said[0] if said else 'it has no frames'})"

    def close(self) -> None:
        """Ends FFmpeg and the thread."""
        self._process.kill()
        self._process.wait()
        self._thread.join()
        self._process.stdout.close()
        self._said.close()


def read_ppm(file: IO[bytes]) -> np.ndarray | None:
    """Reads one image in the PPM format, (height, width, 3) uint8; None where the file ends."""
    header = file.readline(), file.readline(), file.readline()
    size = re.fullmatch(rb"(\d+) (\d+)\n", header[1])
    if header[0] != b"P6\n" or size is None:
        return None
    width, height = int(size[1]), int(size[2])
    data = file.read(width * height * 3)
    if len(data) < width * height * 3:
        return None
    return np.frombuffer(data, np.uint8).reshape(height, width, 3)


def webcam_arguments(index: int, platform: str = sys.platform, cameras=None) -> list[str]:
    """Returns FFmpeg's arguments for a camera of this machine.

    Args:
      index: counts the cameras from 0. platform: as `sys.platform`.
      cameras: gives the names of the cameras, which Windows needs; asks FFmpeg unless given.

    Raises:
      UserError: Windows has no such camera.
    """
    if platform == "darwin":
        return ["-f", "avfoundation", "-framerate", "30", "-i", f"{index}:none"]
    if platform != "win32":
        return ["-f", "v4l2", "-i", f"/dev/video{index}"]
    names = (cameras or _list_cameras)()
    if index >= len(names):
        known = ", ".join(names) or "none"
        raise UserError(f"--webcam {index}: no such camera; there are: {known}")
    return ["-f", "dshow", "-i", f"video={names[index]}"]


def _list_cameras() -> list[str]:
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-hide_banner", "-f", "dshow"]
    said = subprocess.run(
        [*command, "-list_devices", "true", "-i", "dummy"],
        stdin=subprocess.DEVNULL, capture_output=True,
    )  # fmt: skip
    return re.findall(r'"([^"]+)" \(video\)', said.stderr.decode("utf-8", "replace"))


def stream_arguments(source: str) -> list[str]:
    """Returns FFmpeg's arguments for a file, a pipe, a device or a URL; `-` is the standard input.

    Files are played at their own pace.

    Raises:
      UserError: there is no such file.
    """
    if source == "-":
        return ["-i", "pipe:0"]
    if re.match(r"[A-Za-z][A-Za-z0-9+.-]*://", source):
        return ["-i", source]
    path = user_path(source)
    if not path.exists():
        raise UserError(f"--stream {source}: no such file, pipe or device")
    if re.fullmatch(r"/dev/video\d+", os.fspath(path)):
        return ["-f", "v4l2", "-i", os.fspath(path)]
    pace = ["-re"] if path.is_file() else []
    return [*pace, "-i", f"file:{path.resolve()}"]
