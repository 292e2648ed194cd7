"""A person who walks through the picture, made of sines, and a stand-in for the model."""

import numpy as np

IMAGE_SIZE = (640, 480)

# A standing person in pixels, Human3.6M order.
_STANDING = np.array([
    [0, 0], [-12, 0], [-14, 45], [-15, 90], [12, 0], [14, 45], [15, 90], [0, -28], [0, -56],
    [2, -68], [0, -80], [18, -52], [24, -25], [26, 0], [-18, -52], [-24, -25], [-26, 0],
], float)  # fmt: skip


def walking(num_frames: int, start=(120.0, 240.0), step=(2.0, 0.1), seed=0) -> np.ndarray:
    """(frames, 17, 2) pixels; smooth, and every joint moves on its own."""
    rng = np.random.default_rng(seed)
    time = np.arange(num_frames)[:, None, None]
    rate, phase = rng.uniform(0.1, 0.3, (2, 17, 2)), rng.uniform(0, 6, (17, 2))
    return _STANDING + start + time * np.array(step) + 3 * np.sin(time * rate[0] + phase)


def fake_predict(poses_2d: np.ndarray) -> np.ndarray:
    """Keeps x and y and makes a depth of them; equivariant under the horizontal flip."""
    depth = 0.3 * poses_2d[..., 1:] - 0.1 * poses_2d[..., :1] ** 2
    return np.concatenate([poses_2d, depth], -1).astype(np.float32)
