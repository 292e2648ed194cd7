"""Videos of a bright spot on black, and an engine that takes the spot for a person."""

import subprocess
from pathlib import Path

import imageio_ffmpeg
import numpy as np

from posemamba_jax.predict.detect import detector, landmarks
from posemamba_jax.predict.detect.engines import Engine

RADIUS = 5


def places(num_frames: int, size: tuple[int, int]) -> np.ndarray:
    """(frames, 2) where the spot is: from the left to the right, a little downwards."""
    share = np.linspace(0, 1, num_frames)[:, None]
    return (np.array([0.3, 0.45]) + share * np.array([0.4, 0.1])) * size


def draw(num_frames: int, size: tuple[int, int], absent=()) -> np.ndarray:
    """(frames, height, width, 3) uint8; no spot in the `absent` frames."""
    y, x = np.mgrid[: size[1], : size[0]] + 0.5
    frames = np.zeros((num_frames, size[1], size[0], 3), np.uint8)
    for t, (px, py) in enumerate(places(num_frames, size)):
        if t not in absent:
            frames[t][(x - px) ** 2 + (y - py) ** 2 < RADIUS**2] = 255
    return frames


def ffmpeg(*arguments, data: bytes | None = None) -> None:
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-y", "-v", "error", *map(str, arguments)]
    subprocess.run(command, input=data, check=True, capture_output=True)


def encode(path: Path, frames: np.ndarray, *, fps=25, extra=(), filters=()) -> Path:
    """Writes frames as H.264 of full colour resolution, so that any size goes."""
    height, width = frames.shape[1:3]
    raw = ["-f", "rawvideo", "-pix_fmt", "rgb24", "-s", f"{width}x{height}", "-r", fps, "-i", "-"]
    code = ["-c:v", "libx264", "-pix_fmt", "yuv444p", "-crf", "10", "-preset", "ultrafast"]
    ffmpeg(*raw, *filters, *code, *extra, path, data=frames.tobytes())
    return path


def spot(images: np.ndarray) -> list[np.ndarray | None]:
    """The centre of the bright pixels of each image, None where there are none."""
    found = []
    for image in images:
        y, x = np.nonzero(image.max(-1) > 128)
        found.append(np.array([x.mean(), y.mean()]) + 0.5 if len(x) else None)
    return found


def detect(images: np.ndarray) -> list[np.ndarray]:
    anchors = detector.make_anchors() * detector.SIDE
    numbers = np.zeros((len(images), len(anchors), 12), np.float32)
    logits = np.full((len(images), len(anchors), 1), -9, np.float32)
    for n, centre in enumerate(spot(images)):
        if centre is not None:
            i = np.linalg.norm(anchors - centre, axis=1).argmin()
            away = centre - anchors[i]
            numbers[n, i, :8] = [*away, 30, 30, *away, away[0], away[1] - 40]
            logits[n, i] = 4
    return [numbers, logits]


def locate(images: np.ndarray) -> list[np.ndarray]:
    """All 39 points on the spot but for the one above it; sure of itself if it is there."""
    values = np.zeros((len(images), 39, 5), np.float32)
    values[..., 3] = 5
    presence = np.zeros((len(images), 1), np.float32)
    ring = 20 * np.stack([np.cos(np.arange(39)), np.sin(np.arange(39))], -1)
    ring[[23, 24, 33]] = 0
    for n, centre in enumerate(spot(images)):
        if centre is not None:
            values[n, :, :2] = centre + ring
            values[n, 34, :2] = centre - (0, landmarks.SIDE / 2.5)
            presence[n] = 1
    maps = np.full((len(images), 64, 64, 39), -12, np.float32)
    return [values.reshape(len(images), -1), presence, maps]


ENGINE = Engine(detect, locate, batch_size=2, workers=2)
