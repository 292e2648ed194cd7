"""Writes the made-up keypoint files in tests/data/keypoints.

A person of sines, two where the format tracks people; nothing in them was observed.
"""

from pathlib import Path

import numpy as np
import writers
from moving_people import IMAGE_SIZE, walking


def make(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    one = np.round(walking(6), 1)
    two = {1: one[:3], 2: np.round(walking(3, (400.0, 250.0), seed=1), 1)}
    writers.alphapose(folder / "alphapose.json", {1: one})
    writers.openpose(folder / "openpose", two, with_ids=False)
    writers.mmpose(folder / "mmpose.json", two)
    writers.mediapipe(folder / "mediapipe.json", {1: two[1]}, IMAGE_SIZE)
    writers.videopose3d(folder / "videopose3d.npz", one, IMAGE_SIZE)
    writers.array(folder / "h36m17.npy", one)


if __name__ == "__main__":
    make(Path(__file__).parents[1] / "data" / "keypoints")
