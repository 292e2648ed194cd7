"""Joint angles as biomechanics defines them, as far as 17 joints tell.

Segments get the axes of the International Society of Biomechanics (x forward, y up, z to the
person's right): Wu et al., "ISB recommendation on definitions of joint coordinate systems", parts I
and II, Journal of Biomechanics 35 (2002) and 38 (2005). Rotations between two segments are taken
apart as flexion about z of the upper one, then abduction about x, then rotation about y of the
lower one (Grood and Suntay, Journal of Biomechanical Engineering 105, 1983).

Signs are clinical and the same on both sides: flexion, abduction and internal rotation are
positive. docs/world.md says what each angle means and which ones cannot be known.
"""

import numpy as np

from posemamba_jax.skeleton import H36M17

# The turn of a thigh or an upper arm about itself shows in the bend of knee or elbow only.
MIN_BEND_DEGREES = 20.0
# Where the arm hangs or points straight up, the plane that it is raised in is undefined.
MIN_ELEVATION_DEGREES = 15.0

_SIDES = {"l": "left", "r": "right"}
ANGLES = (
    "pelvis_obliquity",
    "pelvis_heading",
    "trunk_flexion",
    "trunk_bending",
    "trunk_rotation",
    "trunk_lean_forward",
    "trunk_lean_right",
    *(
        f"{side}_{angle}"
        for side in ("left", "right")
        for angle in (
            "hip_flexion",
            "hip_abduction",
            "hip_rotation",
            "knee_flexion",
            "ankle_dorsiflexion",
            "shoulder_flexion",
            "shoulder_abduction",
            "shoulder_rotation",
            "shoulder_elevation",
            "shoulder_elevation_plane",
            "elbow_flexion",
        )
    ),
)


def compute_angles(poses: np.ndarray, planted: np.ndarray | None = None) -> dict[str, np.ndarray]:
    """Computes the joint angles of a motion.

    Args:
      poses: (T, 17, 3) with y up, in any unit; NaN where there is no pose.
      planted: (T, 2) bool, whether the left and the right foot stands on the ground; the ankle's
        angle is known only then.

    Returns:
      (T,) degrees for each name in `ANGLES`, NaN where an angle is undefined.
    """
    joint = {name: poses[:, i] for i, name in enumerate(H36M17.joints)}
    pelvis = pelvis_axes(poses)
    thorax = _axes(joint["neck"] - joint["belly"], joint["r_shoulder"] - joint["l_shoulder"])
    up = np.array([0.0, 1.0, 0.0])
    found = {
        "pelvis_obliquity": _degrees(np.arcsin(_clip(pelvis[:, 1, 2]))),
        "pelvis_heading": _degrees(np.arctan2(pelvis[:, 0, 0], pelvis[:, 2, 0])),
    }
    bend, side, turn = cardan_zxy(_between(pelvis, thorax))
    found["trunk_flexion"], found["trunk_bending"] = -bend, side
    found["trunk_rotation"] = turn
    # In the frame of somebody who stands upright and faces the same way as the pelvis.
    forward = _unit(pelvis[:, :, 0] * np.array([1, 0, 1]))
    spine = _unit(joint["neck"] - joint["root"])
    rise = spine @ up
    found["trunk_lean_forward"] = _degrees(np.arctan2(_dot(spine, forward), rise))
    found["trunk_lean_right"] = _degrees(np.arctan2(_dot(spine, np.cross(forward, up)), rise))
    for index, (letter, name) in enumerate(_SIDES.items()):
        own = _leg(joint, letter, pelvis, None if planted is None else planted[:, index])
        own |= _arm(joint, letter, thorax)
        found |= {f"{name}_{angle}": values for angle, values in own.items()}
    return {name: found[name] for name in ANGLES}


def pelvis_axes(poses: np.ndarray) -> np.ndarray:
    """Finds (T, 3, 3) whose columns are the pelvis' forward, up and right; up follows the lower
    back.
    """
    joint = {name: poses[:, i] for i, name in enumerate(H36M17.joints)}
    right, up = _unit(joint["r_hip"] - joint["l_hip"]), joint["belly"] - joint["root"]
    up = _unit(up - _dot(up, right)[:, None] * right)
    return np.stack([np.cross(up, right), up, right], axis=-1)


def cardan_zxy(rotation: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Degrees about z, x and y of rotations (T, 3, 3) = Rz Rx Ry."""
    r = rotation
    about_z = np.arctan2(-r[:, 0, 1], r[:, 1, 1])
    about_x = np.arcsin(_clip(r[:, 2, 1]))
    about_y = np.arctan2(-r[:, 2, 0], r[:, 2, 2])
    return _degrees(about_z), _degrees(about_x), _degrees(about_y)


def _leg(joint, letter: str, pelvis, planted) -> dict[str, np.ndarray]:
    hip, knee, ankle = (joint[f"{letter}_{name}"] for name in ("hip", "knee", "ankle"))
    sign = 1 if letter == "r" else -1
    flexion = _bend(hip, knee, ankle)
    thigh, shank = _unit(hip - knee), ankle - knee
    # The shank bends backwards.
    front = -_unit(shank - _dot(shank, thigh)[:, None] * thigh)
    about_z, about_x, about_y = cardan_zxy(_between(pelvis, _from_up_and_front(thigh, front)))
    lean = _unit(knee - ankle)
    forward = _unit(pelvis[:, :, 0] * np.array([1, 0, 1]))
    dorsiflexion = _degrees(np.arctan2(_dot(lean, forward), lean[:, 1]))
    stands = np.zeros(len(hip), bool) if planted is None else planted
    return {
        "hip_flexion": about_z,
        "hip_abduction": -sign * about_x,
        "hip_rotation": np.where(flexion > MIN_BEND_DEGREES, sign * about_y, np.nan),
        "knee_flexion": flexion,
        "ankle_dorsiflexion": np.where(stands, dorsiflexion, np.nan),
    }


def _arm(joint, letter: str, thorax) -> dict[str, np.ndarray]:
    shoulder, elbow, wrist = (joint[f"{letter}_{name}"] for name in ("shoulder", "elbow", "wrist"))
    sign = 1 if letter == "r" else -1
    flexion = _bend(shoulder, elbow, wrist)
    arm, forearm = _unit(shoulder - elbow), wrist - elbow
    # The forearm bends forwards.
    front = _unit(forearm - _dot(forearm, arm)[:, None] * arm)
    about_z, about_x, about_y = cardan_zxy(_between(thorax, _from_up_and_front(arm, front)))
    ahead, above, right = np.moveaxis(np.einsum("tij,ti->tj", thorax, -arm), -1, 0)
    elevation = _degrees(np.arccos(_clip(-above)))
    plane = _degrees(np.arctan2(ahead, sign * right))
    clear = (elevation > MIN_ELEVATION_DEGREES) & (elevation < 180 - MIN_ELEVATION_DEGREES)
    return {
        "shoulder_flexion": about_z,
        "shoulder_abduction": -sign * about_x,
        "shoulder_rotation": np.where(flexion > MIN_BEND_DEGREES, sign * about_y, np.nan),
        "shoulder_elevation": elevation,
        "shoulder_elevation_plane": np.where(clear, plane, np.nan),
        "elbow_flexion": flexion,
    }


def _axes(up: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Makes (T, 3, 3) with columns forward, up, right; up is kept and right made square to it."""
    up = _unit(up)
    right = _unit(right - _dot(right, up)[:, None] * up)
    return np.stack([np.cross(up, right), up, right], axis=-1)


def _from_up_and_front(up: np.ndarray, front: np.ndarray) -> np.ndarray:
    return np.stack([front, up, np.cross(front, up)], axis=-1)


def _between(upper: np.ndarray, lower: np.ndarray) -> np.ndarray:
    """Turns the lower segment's axes into the upper one's view of them, (T, 3, 3)."""
    return np.swapaxes(upper, 1, 2) @ lower


def _bend(a: np.ndarray, b: np.ndarray, c: np.ndarray) -> np.ndarray:
    """Degrees by which the limb a, b, c is bent at b; 0 if it is straight."""
    return 180 - _degrees(np.arccos(_clip(_dot(_unit(a - b), _unit(c - b)))))


def _unit(vectors: np.ndarray) -> np.ndarray:
    norm = np.linalg.norm(vectors, axis=-1, keepdims=True)
    return vectors / np.where(norm > 1e-9, norm, np.nan)


def _dot(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return (a * b).sum(-1)


def _clip(cosine: np.ndarray) -> np.ndarray:
    return np.clip(cosine, -1, 1)


def _degrees(radians: np.ndarray) -> np.ndarray:
    return np.degrees(radians)
