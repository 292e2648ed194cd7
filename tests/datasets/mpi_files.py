"""Small files in MPI-INF-3DHP's format; joints in the file's order."""

import numpy as np

# The order that the preparation of the files documents.
FILE_NAMES = (
    *("head_top", "neck", "r_shoulder", "r_elbow", "r_wrist", "l_shoulder", "l_elbow", "l_wrist"),
    *("r_hip", "r_knee", "r_ankle", "l_hip", "l_knee", "l_ankle", "pelvis", "spine", "head"),
)
SIZES = {"TS5": (1920, 1080), "TS6": (1920, 1080)}


def make_pose(frames, width, height, rng):
    return {
        "data_2d": rng.uniform(0, 1, (frames, 17, 2)) * (width, height),
        "data_3d": rng.normal(0, 300, (frames, 17, 3)) + (200, 100, 4000),
    }


def make_train(frames=(30, 12), cameras=("0", "8"), seed=0) -> dict:
    rng = np.random.default_rng(seed)
    return {
        f"S{n + 1} Seq1": [
            {camera: make_pose(length, 2048, 2048, rng) for camera in cameras},
            25,
        ]
        for n, length in enumerate(frames)
    }


def make_test(frames=None, seed=1) -> dict:
    """Sequences in which about every second frame is valid."""
    rng = np.random.default_rng(seed)
    frames = {"TS1": 12, "TS5": 7, "TS6": 3} if frames is None else frames
    content = {}
    for name, length in frames.items():
        content[name] = make_pose(length, *SIZES.get(name, (2048, 2048)), rng)
        content[name]["valid"] = np.arange(length) % 2 == 0
    return content


def write(content, path):
    np.savez_compressed(path, data=content)
    return str(path)
