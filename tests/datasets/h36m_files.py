"""Small files in the Human3.6M file's format."""

import pickle

import numpy as np

CAMERAS = ("54138969", "55011271", "58860488", "60457274")


def make_split(lengths, *, seed=0, test=True) -> dict:
    """Makes one split of made-up frames: recordings of the given lengths, cameras in turn."""
    rng = np.random.default_rng(seed)
    rows = sum(lengths)
    number = np.repeat(np.arange(len(lengths)), lengths)
    split = {
        "joint_2d": rng.uniform(100, 900, (rows, 17, 2)).astype(np.float32),
        "confidence": rng.uniform(0, 1, (rows, 17, 1)).astype(np.float32),
        "joint3d_image": rng.uniform(100, 900, (rows, 17, 3)).astype(np.float32),
        "camera_name": np.array(CAMERAS)[number % 4],
        "source": np.array([f"s_09_act_{n + 2:02d}_subact_01_ca_01" for n in range(len(lengths))])[
            number
        ],
    }
    if test:
        split["action"] = np.array(["Walk", "Sit", "Eat"])[number % 3]
        split["2.5d_factor"] = rng.uniform(3, 5, rows)
        split["joints_2.5d_image"] = rng.uniform(-900, 900, (rows, 17, 3)).astype(np.float32)
    return split


def make_content(lengths=(30, 12, 5), seed=0) -> dict:
    return {
        "train": make_split(lengths, seed=seed, test=False),
        "test": make_split(lengths, seed=seed + 1),
    }


def write(content, path, protocol=4):
    with open(path, "wb") as file:
        pickle.dump(content, file, protocol=protocol)
    return path
