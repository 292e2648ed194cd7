"""Writers for programs: .npz, JSON, CSV."""

import csv
import json

import numpy as np

from posemamba_jax.files import writing
from posemamba_jax.predict.export.result import Result

AXES = "x right, y down, z away from the camera; root-relative"
WORLD_AXES = "x right, y up, z towards the camera; origin on the ground below the camera; mm"


def write_npz(path, result: Result) -> None:
    """Writes arrays under their names in `Result`; the file opens without allow_pickle."""
    arrays = dict(
        poses_3d=result.poses_3d,
        poses_2d=result.poses_2d,
        predicted=result.predicted,
        observed=result.observed,
        observed_joints=result.observed_joints,
        segments=np.array(result.segments, np.int64).reshape(-1, 2),
        root_translation=result.root_translation,
        frame_numbers=result.frame_numbers,
        fps=np.float64(result.fps),
        image_size=np.array(result.image_size, np.int64),
        joint_names=np.array(result.skeleton.joints),
        bones=np.array(result.skeleton.bones, np.int64),
        units=np.array(result.units),
        axes=np.array(AXES),
        mm_per_unit=result.mm_per_unit,
        track=np.int64(result.track),
        source=np.array(result.source.encode("utf-8", "backslashreplace").decode()),
        source_format=np.array(result.source_format),
        joint_set=np.array(result.joint_set),
        **_world_arrays(result),
    )
    with writing.replacing(path) as part:
        np.savez_compressed(part, **arrays)


def _world_arrays(result: Result) -> dict[str, np.ndarray]:
    if result.camera is None:
        return {}
    return {
        "world_poses": result.world_poses.astype(np.float32),
        "world_axes": np.array(WORLD_AXES),
        "planted": result.planted,
        "camera_focal_px": np.float64(result.camera.focal_px),
        "camera_focal_deviation": np.float64(result.camera.focal_deviation),
        "camera_focal_source": np.array(result.camera.focal_source),
        "camera_rotation": result.camera.rotation,
        "camera_position": result.camera.position,
        "size": np.array(result.size),
    }


def _world_object(result: Result) -> dict:
    camera = result.camera
    if camera is None:
        return {"world_axes": None, "camera": None, "size": None}
    return {
        "world_axes": WORLD_AXES,
        "camera": {
            "focal_px": camera.focal_px,
            "focal_deviation": camera.focal_deviation,
            "focal_source": camera.focal_source,
            "rotation": _rounded(camera.rotation, 9),
            "position": _rounded(camera.position, 3),
        },
        "size": result.size,
    }


def write_json(path, result: Result) -> None:
    """Writes one object; `frames` has an entry for every frame, poses null where there is none."""
    frames = []
    for t in range(result.num_frames):
        there = bool(result.predicted[t])
        placed = there and result.world_poses is not None
        frames.append(
            {
                "frame": int(result.frame_numbers[t]),
                "time": round(t / result.fps, 6),
                "observed": bool(result.observed[t]),
                "pose_3d": _rounded(result.poses_3d[t], 6) if there else None,
                "pose_2d": _rounded(result.poses_2d[t], 3) if there else None,
                "observed_joints": result.observed_joints[t].tolist(),
                "root_translation": _rounded(result.root_translation[t], 6) if there else None,
                "mm_per_unit": _number(result.mm_per_unit[t]),
                "world_pose": _rounded(result.world_poses[t], 1) if placed else None,
                "planted": result.planted[t].tolist() if placed else None,
            }
        )
    header = {
        "track": result.track,
        "fps": result.fps,
        "units": result.units,
        "axes": AXES,
        "image_size": list(result.image_size),
        "joint_names": list(result.skeleton.joints),
        "bones": [list(bone) for bone in result.skeleton.bones],
        "segments": [list(segment) for segment in result.segments],
        "source": result.source,
        "source_format": result.source_format,
        "joint_set": result.joint_set,
        **_world_object(result),
        "frames": frames,
    }
    writing.write_text(path, json.dumps(header, allow_nan=False) + "\n")


def write_csv(path, result: Result) -> None:
    """Writes one row a frame: frame, time, observed, then x, y, z of every joint; empty without a
    pose.
    """
    columns = [f"{joint}_{axis}" for joint in result.skeleton.joints for axis in "xyz"]
    with writing.replacing(path) as part, part.open("w", newline="", encoding="ascii") as file:
        writer = csv.writer(file)
        writer.writerow(["frame", "time", "observed", *columns])
        for t in range(result.num_frames):
            numbers = [f"{v:.6g}" for v in result.poses_3d[t].ravel()]
            if not result.predicted[t]:
                numbers = [""] * len(columns)
            head = [int(result.frame_numbers[t]), f"{t / result.fps:.6f}", int(result.observed[t])]
            writer.writerow([*head, *numbers])


def _number(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None


def _rounded(values: np.ndarray, digits: int) -> list:
    return np.round(values.astype(np.float64), digits).tolist()
