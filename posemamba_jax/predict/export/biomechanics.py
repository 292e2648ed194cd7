"""Joint angles as CSV, and markers and coordinates for OpenSim (TRC and MOT files)."""

import csv
from pathlib import Path

import numpy as np

from posemamba_jax.errors import UserError
from posemamba_jax.files import writing
from posemamba_jax.predict.angles import ANGLES, cardan_zxy, compute_angles, pelvis_axes
from posemamba_jax.predict.export.result import Result


def result_angles(result: Result) -> dict[str, np.ndarray]:
    """Computes joint angles (T,) of a result: of its poses in the room, else of the root-relative
    ones.

    They are those of the lifted poses: world poses have had their knees bent to hold the feet.
    """
    return compute_angles(turned_upright(result), result.planted)


def turned_upright(result: Result) -> np.ndarray:
    """Returns (T, 17, 3) root-relative poses with y up: in world axes, else with the image's up for
    up.
    """
    poses = result.poses_3d.astype(np.float64)
    if result.camera is not None:
        return poses @ result.camera.rotation
    return poses * np.array([1, -1, -1])


def placed_poses(result: Result) -> np.ndarray:
    """Returns (T, 17, 3) world poses; root-relative ones with y up where there is no world."""
    return turned_upright(result) if result.world_poses is None else result.world_poses


def write_angles(path, result: Result) -> None:
    """Writes one row a frame: frame, time, observed, then every angle in degrees; empty if
    undefined.
    """
    angles = result_angles(result)
    with writing.replacing(path) as part, part.open("w", newline="", encoding="ascii") as file:
        writer = csv.writer(file)
        writer.writerow(["frame", "time", "observed", *ANGLES])
        for t in range(result.num_frames):
            numbers = ["" if np.isnan(angles[name][t]) else f"{angles[name][t]:.2f}"
                       for name in ANGLES]  # fmt: skip
            head = [int(result.frame_numbers[t]), f"{t / result.fps:.6f}", int(result.observed[t])]
            writer.writerow([*head, *numbers])


def write_trc(path, result: Result) -> None:
    """Writes joint centres as markers in OpenSim's TRC format: tab-separated, y up, millimetres.

    Markers of frames without a pose are NaN, which OpenSim reads; it miscounts empty columns.

    Raises:
      UserError: the result has no millimetres.
    """
    path = Path(path)
    _check_millimetres(result, "trc")
    poses = placed_poses(result)
    names = result.skeleton.joints
    rate, count = f"{result.fps:.6g}", result.num_frames
    lines = [
        f"PathFileType\t4\t(X/Y/Z)\t{path.name}",
        "DataRate\tCameraRate\tNumFrames\tNumMarkers\tUnits\tOrigDataRate\tOrigDataStartFrame"
        "\tOrigNumFrames",
        f"{rate}\t{rate}\t{count}\t{len(names)}\tmm\t{rate}\t1\t{count}",
        "Frame#\tTime\t" + "\t\t\t".join(names) + "\t\t",
        "\t\t" + "\t".join(f"{axis}{i + 1}" for i in range(len(names)) for axis in "XYZ"),
        "",
    ]
    for t, pose in enumerate(poses):
        numbers = ["NaN" if np.isnan(value) else f"{value:.3f}" for value in pose.ravel()]
        lines.append("\t".join([str(t + 1), f"{t / result.fps:.6f}", *numbers]))
    writing.write_text(path, "\n".join(lines) + "\n")


# Coordinates of OpenSim's full-body models (Rajagopal et al., IEEE Transactions on Biomedical
# Engineering 63, 2016): our angle and its sign there.
_COORDINATES = (
    ("lumbar_extension", "trunk_flexion", -1),
    ("lumbar_bending", "trunk_bending", 1),
    ("lumbar_rotation", "trunk_rotation", 1),
    *(
        (f"{theirs}_{side[0]}", f"{side}_{ours}", sign)
        for side in ("right", "left")
        for theirs, ours, sign in (
            ("hip_flexion", "hip_flexion", 1),
            ("hip_adduction", "hip_abduction", -1),
            ("hip_rotation", "hip_rotation", 1),
            ("knee_angle", "knee_flexion", 1),
            ("ankle_angle", "ankle_dorsiflexion", 1),
            ("arm_flex", "shoulder_flexion", 1),
            ("arm_add", "shoulder_abduction", -1),
            ("arm_rot", "shoulder_rotation", 1),
            ("elbow_flex", "elbow_flexion", 1),
        )
    ),
)


def write_mot(path, result: Result) -> None:
    """Writes coordinates over time in OpenSim's MOT format: degrees, and metres for the pelvis'
    place.

    A model's coordinates have a value at all times, so angles that are undefined for a while are
    bridged by straight lines and those that are never defined are 0; frames without a pose are
    left out.

    Raises:
      UserError: the result has no millimetres.
    """
    _check_millimetres(result, "mot")
    kept = np.flatnonzero(result.predicted)
    roots = placed_poses(result)[kept, result.skeleton.root]
    angles = result_angles(result)
    tilt, lean, turn = cardan_zxy(pelvis_axes(turned_upright(result)[kept]))
    unwrapped = np.degrees(np.unwrap(np.radians(_bridged(turn))))
    columns = {"pelvis_tilt": tilt, "pelvis_list": lean, "pelvis_rotation": unwrapped}
    for axis, values in zip("xyz", roots.T / 1000, strict=True):
        columns[f"pelvis_t{axis}"] = values
    for theirs, ours, sign in _COORDINATES:
        columns[theirs] = sign * angles[ours][kept]
    table = np.stack([_bridged(values) for values in columns.values()], axis=1)
    lines = [
        "Coordinates",
        "version=1",
        f"nRows={len(kept)}",
        f"nColumns={len(columns) + 1}",
        "inDegrees=yes",
        "endheader",
        "\t".join(["time", *columns]),
    ]
    for t, row in zip(kept, table, strict=True):
        lines.append("\t".join([f"{t / result.fps:.6f}", *(f"{value:.6f}" for value in row)]))
    writing.write_text(path, "\n".join(lines) + "\n")


def _check_millimetres(result: Result, kind: str) -> None:
    if result.world_poses is None and result.units != "mm":
        raise UserError(
            f"--outputs {kind}: person {result.track} has no millimetres; leave --trajectory world "
            "as it is or give --height_mm"
        )


def _bridged(values: np.ndarray) -> np.ndarray:
    """Replaces NaN by straight lines between what is known, 0 if nothing is."""
    known = np.flatnonzero(np.isfinite(values))
    if not len(known):
        return np.zeros(len(values))
    return np.interp(np.arange(len(values)), known, values[known])
