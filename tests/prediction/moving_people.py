"""People to lift: made of sines, and from real motion capture; and a stand-in for the model."""

import numpy as np

from posemamba_jax.data.sources import mocap

IMAGE_SIZE = (640, 480)
# Frames that the models of these tests take.
WINDOW = 27

# A standing person in pixels, Human3.6M order.
_STANDING = np.array([
    [0, 0], [-12, 0], [-14, 45], [-15, 90], [12, 0], [14, 45], [15, 90], [0, -28], [0, -56],
    [2, -68], [0, -80], [18, -52], [24, -25], [26, 0], [-18, -52], [-24, -25], [-26, 0],
], float)  # fmt: skip


def walking(num_frames: int, start=(120.0, 240.0), step=(2.0, 0.1), seed=0) -> np.ndarray:
    """Makes (frames, 17, 2) pixels; smooth, and every joint moves on its own."""
    rng = np.random.default_rng(seed)
    time = np.arange(num_frames)[:, None, None]
    rate, phase = rng.uniform(0.1, 0.3, (2, 17, 2)), rng.uniform(0, 6, (17, 2))
    return _STANDING + start + time * np.array(step) + 3 * np.sin(time * rate[0] + phase)


def fake_predict(poses_2d: np.ndarray) -> np.ndarray:
    """Keeps x and y and makes a depth of them; equivariant under the horizontal flip."""
    depth = 0.3 * poses_2d[..., 1:] - 0.1 * poses_2d[..., :1] ** 2
    return np.concatenate([poses_2d, depth], -1).astype(np.float32)


def watch_mocap(folder, names, cameras: int, fps: float = 50.0) -> list[dict[str, np.ndarray]]:
    """Recordings seen by cameras, with a detector's errors: whole clips, not windows.

    Each has poses_2d (frames, 17, 3) normalised, relative (frames, 17, 3) in the same units, and
    poses_3d_mm; all cameras have images of 1000x1000 pixels.
    """
    options = mocap.MocapConfig(
        test=tuple(str(folder / name) for name in names), fps=fps, cameras=cameras, cache_dir=""
    )
    source = mocap.build(options, clip_len=27, stride=27, split="test", input_2d="detected")
    clips = []
    for recording in source.recordings:
        rows = slice(recording.start, recording.stop)
        clip = {key: np.array(array[rows]) for key, array in source.arrays.items()}
        clip["relative"] = clip["poses_3d"] - clip["poses_3d"][:, :1]
        clips.append(clip)
    return clips
