"""Joint sets of 2D detectors, and their conversion to Human3.6M-17.

Every conversion is linear: a target joint is a source joint or the mean of a few, as MotionBERT,
AlphaPose and the authors' demo code do it. A target joint with an unseen source is missing.
"""

import dataclasses

import numpy as np

from posemamba_jax.skeleton import H36M17


@dataclasses.dataclass(frozen=True)
class JointSet:
    """name; number of joints; weights (17, joints): rows are Human3.6M-17 joints, summing to 1."""

    name: str
    num_joints: int
    weights: np.ndarray


def _joint_set(name: str, num_joints: int, **sources: int | tuple[int, ...]) -> JointSet:
    weights = np.zeros((H36M17.num_joints, num_joints), np.float32)
    for joint, source in sources.items():
        source = (source,) if isinstance(source, int) else source
        for index in source:
            weights[H36M17.joints.index(joint), index] += 1 / len(source)
    assert np.allclose(weights.sum(1), 1), name
    return JointSet(name, num_joints, weights)


# The belly is the middle between root and neck where a detector has no spine joint.
JOINT_SETS = {
    s.name: s
    for s in (
        JointSet("h36m17", 17, np.eye(17, dtype=np.float32)),
        _joint_set(
            "coco17",
            17,
            root=(11, 12),
            r_hip=12,
            r_knee=14,
            r_ankle=16,
            l_hip=11,
            l_knee=13,
            l_ankle=15,
            belly=(11, 12, 5, 6),
            neck=(5, 6),
            nose=0,
            head=(1, 2),
            l_shoulder=5,
            l_elbow=7,
            l_wrist=9,
            r_shoulder=6,
            r_elbow=8,
            r_wrist=10,
        ),
        _joint_set(
            "halpe26",
            26,
            root=19,
            r_hip=12,
            r_knee=14,
            r_ankle=16,
            l_hip=11,
            l_knee=13,
            l_ankle=15,
            belly=(18, 19),
            neck=18,
            nose=0,
            head=17,
            l_shoulder=5,
            l_elbow=7,
            l_wrist=9,
            r_shoulder=6,
            r_elbow=8,
            r_wrist=10,
        ),
        _joint_set(
            "body25",
            25,
            root=8,
            r_hip=9,
            r_knee=10,
            r_ankle=11,
            l_hip=12,
            l_knee=13,
            l_ankle=14,
            belly=(8, 1),
            neck=1,
            nose=0,
            head=(15, 16),
            l_shoulder=5,
            l_elbow=6,
            l_wrist=7,
            r_shoulder=2,
            r_elbow=3,
            r_wrist=4,
        ),
        _joint_set(
            "mediapipe33",
            33,
            root=(23, 24),
            r_hip=24,
            r_knee=26,
            r_ankle=28,
            l_hip=23,
            l_knee=25,
            l_ankle=27,
            belly=(23, 24, 11, 12),
            neck=(11, 12),
            nose=0,
            head=(2, 5),
            l_shoulder=11,
            l_elbow=13,
            l_wrist=15,
            r_shoulder=12,
            r_elbow=14,
            r_wrist=16,
        ),
        _joint_set(
            "posetrack18",
            18,
            root=(11, 12),
            r_hip=12,
            r_knee=14,
            r_ankle=16,
            l_hip=11,
            l_knee=13,
            l_ankle=15,
            belly=(11, 12, 1, 1),
            neck=1,
            nose=0,
            head=2,
            l_shoulder=5,
            l_elbow=7,
            l_wrist=9,
            r_shoulder=6,
            r_elbow=8,
            r_wrist=10,
        ),
    )
}

# Sets with face and hands begin with the body joints of a smaller set.
_LARGER_SETS = {133: "coco17", 136: "halpe26"}
_BY_COUNT = {25: "body25", 26: "halpe26", 33: "mediapipe33", **_LARGER_SETS}


def resolve(num_joints: int, given: str | None, for_17: str | None, keypoints=None) -> str:
    """Finds the joint set of detections with this many joints.

    Args:
      num_joints: joints per person in the file.
      given: what the user says, or None.
      for_17: what 17 joints mean in this format; None if the format does not say, and then
        `keypoints` (detections, 17, 3) decide.

    Raises:
      ValueError: the count fits no joint set, or not the given one.
    """
    if given is not None:
        if given not in JOINT_SETS:
            raise ValueError(f"unknown joint set {given!r}; known: {', '.join(JOINT_SETS)}")
        expected = JOINT_SETS[given].num_joints
        if num_joints != expected and _LARGER_SETS.get(num_joints) != given:
            raise ValueError(
                f"joint set {given} has {expected} joints, but the file has {num_joints}"
            )
        return given
    if num_joints == 17:
        return for_17 or guess_17(keypoints)
    if num_joints in _BY_COUNT:
        return _BY_COUNT[num_joints]
    known = ", ".join(f"{s.name} ({s.num_joints})" for s in JOINT_SETS.values())
    raise ValueError(
        f"{num_joints} joints per person fit no joint set that can be recognised; supported are "
        f"{known}; 133 (COCO-WholeBody) and 136 (Halpe-136) use their body joints; name one of "
        f"18 joints with --joint_set posetrack18"
    )


def guess_17(keypoints: np.ndarray) -> str:
    """Tells COCO-17 from Human3.6M-17 by where joints 0-4 are.

    In COCO they are the face and span a small part of the body; in Human3.6M they are the root,
    the right leg and the left hip.

    Args:
      keypoints: (detections, 17, 2 or more).
    """

    def extent(points):
        # Detections miss joints; ranges ignore those.
        return np.linalg.norm(np.nanmax(points, 1) - np.nanmin(points, 1), axis=-1)

    xy = np.array(keypoints[..., :2], np.float64)
    if keypoints.shape[-1] > 2:
        xy[keypoints[..., 2] <= 0] = np.nan
    xy = xy[np.isfinite(xy).all(-1).sum(1) >= 12]
    xy = xy[np.isfinite(xy[:, :5]).all(-1).sum(1) >= 3]
    if not len(xy):
        return "coco17"
    share = np.median(extent(xy[:, :5]) / np.maximum(extent(xy), 1e-9))
    return "coco17" if share < 0.3 else "h36m17"


def to_h36m17(keypoints: np.ndarray, joint_set: str) -> np.ndarray:
    """Converts detections to Human3.6M-17.

    Args:
      keypoints: (..., joints, 3) x, y, confidence; joints with confidence 0 (or NaN) are missing.
      joint_set: name of the joint set. More joints than it has (face and hands) are ignored.

    Returns:
      (..., 17, 3) float32. A joint made of several has their mean confidence; one that lacks any
      of its sources is NaN, NaN, 0.
    """
    table = JOINT_SETS[joint_set]
    points = np.asarray(keypoints[..., : table.num_joints, :], np.float32)
    seen = (points[..., 2] > 0) & np.isfinite(points).all(-1)
    filled = np.where(seen[..., None], points, 0)
    converted = np.einsum("jk,...kc->...jc", table.weights, filled)
    complete = (np.where(seen, 0, 1) @ (table.weights > 0).T.astype(np.float32)) == 0
    missing = np.array([np.nan, np.nan, 0], np.float32)
    return np.where(complete[..., None], converted, missing).astype(np.float32)
