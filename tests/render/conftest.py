"""A person who walks on the spot before a camera."""

import numpy as np
import pytest

# Standing, in millimetres from the root: x to the person's left, y up, z to the front.
STANDING = np.array(
    [
        (0, 0, 0), (-130, 0, 0), (-130, -440, 0), (-130, -880, 0), (130, 0, 0), (130, -440, 0),
        (130, -880, 0), (0, 240, 0), (0, 490, 0), (0, 580, 70), (0, 690, 0), (150, 450, 0),
        (200, 170, 0), (200, -80, 20), (-150, 450, 0), (-200, 170, 0), (-200, -80, 20),
    ],
    np.float32,
)  # fmt: skip


def walk(frames: int, fps: float = 25.0) -> np.ndarray:
    """Makes (frames, 17, 3) millimetres in camera space, 3 m away, facing the camera."""
    phase = 2 * np.pi * np.arange(frames) / fps
    poses = np.repeat(STANDING[None], frames, axis=0)
    for knee, ankle, elbow, wrist, sign in ((2, 3, 15, 16, 1), (5, 6, 12, 13, -1)):
        swing = sign * np.sin(phase)
        poses[:, knee, 2] += 220 * swing
        poses[:, knee, 1] += 55 * swing**2
        poses[:, ankle, 2] += 330 * swing - 120 * np.maximum(0, np.cos(phase) * sign)
        poses[:, ankle, 1] += 120 * np.maximum(0, np.cos(phase) * sign)
        poses[:, elbow, 2] -= 90 * swing
        poses[:, wrist, 2] -= 230 * swing - 60
        poses[:, wrist, 1] += 60
    # The person's left is the image's right, and the camera's y points down.
    return poses * np.float32([1, -1, -1]) + np.float32([0, 0, 3000])


def project(poses: np.ndarray, width: int, height: int) -> np.ndarray:
    """Projects camera-space poses to pixels (..., 2), without lens distortion."""
    focal = 1.1 * height
    return poses[..., :2] / poses[..., 2:] * focal + np.float32([width / 2, height / 2])


@pytest.fixture(scope="session")
def walker():
    return walk


@pytest.fixture(scope="session")
def projector():
    return project
