"""What pictures of a prediction show: people in their room, with joint angles over time."""

import numpy as np

from posemamba_jax.predict.angles import ANGLES
from posemamba_jax.predict.export.biomechanics import result_angles
from posemamba_jax.predict.export.result import Result
from posemamba_jax.skeleton import H36M17


def describe_scene(results: list[Result]) -> tuple[np.ndarray, dict]:
    """Collects poses and the other arguments of `pictures.render.render`, but for the video.

    People who were placed stand in their room, on its ground; others are shown relative to their
    roots.
    """
    first = results[0]
    if first.camera is None:
        poses = np.stack([r.poses_3d + r.root_translation[:, None] for r in results])
        space = {"units": "mm" if first.units == "mm" else ""}
    else:
        poses = np.stack([r.world_poses for r in results])
        space = {"units": "mm", "up": "y", "camera": first.camera, "ground": 0.0}
    return poses, space | {
        "poses_2d": np.stack([r.poses_2d for r in results]),
        "fps": first.fps,
        "image_size": first.image_size,
        "mask": np.stack([r.observed for r in results]),
        "title": first.source,
        "track_names": [f"person {r.track}" for r in results],
        "skeleton": first.skeleton,
        "curves": _curves(results) if first.skeleton.find(H36M17.joints) else {},
    }


def _curves(results: list[Result]) -> dict[str, np.ndarray]:
    """Collects (people, frames) of every joint angle in degrees and, in a room, of some heights in
    mm.
    """
    angles = [result_angles(result) for result in results]
    curves = {
        f"{name.replace('_', ' ')} (°)": np.stack([own[name] for own in angles]) for name in ANGLES
    }
    # Most often asked for, so first.
    first = [name for name in curves if "knee flexion" in name]
    ordered = {name: curves[name] for name in [*first, *(n for n in curves if n not in first)]}
    if results[0].camera is not None:
        for joint in ("root", "head", "l_ankle", "r_ankle", "l_wrist", "r_wrist"):
            index = H36M17.joints.index(joint)
            heights = [result.world_poses[:, index, 1] for result in results]
            ordered[f"height of {joint} (mm)"] = np.stack(heights)
    return ordered
