"""Writes 2D poses as each detector's files do, so that readers can be tested against the truth.

`people` maps an identity to poses (frames, 17, 2) in Human3.6M order and pixels; NaN frames are
left out. Detectors have joints that Human3.6M lacks (ears, toes): those get the nose's or the
ankle's place, and no conversion may look at them.
"""

import json

import numpy as np

from posemamba_jax.skeleton import H36M17

# Human3.6M joint that stands at each joint of a detector's set.
_COCO = [
    *["nose", "head", "head", "nose", "nose", "l_shoulder", "r_shoulder", "l_elbow", "r_elbow"],
    *["l_wrist", "r_wrist", "l_hip", "r_hip", "l_knee", "r_knee", "l_ankle", "r_ankle"],
]
PLACES = {
    "h36m17": list(H36M17.joints),
    "coco17": _COCO,
    "halpe26": [*_COCO, "head", "neck", "root", *["l_ankle", "r_ankle"] * 3],
    "body25": ["nose", "neck", "r_shoulder", "r_elbow", "r_wrist", "l_shoulder", "l_elbow",
               "l_wrist", "root", "r_hip", "r_knee", "r_ankle", "l_hip", "l_knee", "l_ankle",
               "head", "head", "nose", "nose", *["l_ankle"] * 3, *["r_ankle"] * 3],
    "mediapipe33": ["nose", "head", "head", "head", "head", "head", "head", *["nose"] * 4,
                    "l_shoulder", "r_shoulder", "l_elbow", "r_elbow", *["l_wrist", "r_wrist"] * 4,
                    "l_hip", "r_hip", "l_knee", "r_knee", *["l_ankle", "r_ankle"] * 3],
    "posetrack18": ["nose", "neck", "head", "nose", "nose", "l_shoulder", "r_shoulder", "l_elbow",
                    "r_elbow", "l_wrist", "r_wrist", "l_hip", "r_hip", "l_knee", "r_knee",
                    "l_ankle", "r_ankle", "nose"],
}  # fmt: skip
# What each set's conversion makes of poses written with `as_joint_set`: joints that it derives.
_BELLY = ("root", "neck")
DERIVED = {
    "h36m17": {},
    "coco17": {"root": ("l_hip", "r_hip"), "neck": ("l_shoulder", "r_shoulder"), "belly": _BELLY},
    "halpe26": {"belly": _BELLY},
    "body25": {"belly": _BELLY},
    "mediapipe33": {
        "root": ("l_hip", "r_hip"),
        "neck": ("l_shoulder", "r_shoulder"),
        "belly": _BELLY,
    },
    "posetrack18": {"root": ("l_hip", "r_hip"), "belly": _BELLY},
}


def as_joint_set(poses: np.ndarray, joint_set: str) -> np.ndarray:
    """Turns (..., 17, 2) in Human3.6M order into (..., joints, 2)."""
    return poses[..., [H36M17.joints.index(name) for name in PLACES[joint_set]], :]


def expected_h36m(poses: np.ndarray, joint_set: str) -> np.ndarray:
    """Computes what converting `as_joint_set(poses)` back must give, joint by joint."""
    result = np.array(poses, np.float64)
    for joint, (a, b) in DERIVED[joint_set].items():
        index = H36M17.joints.index
        result[..., index(joint), :] = (result[..., index(a), :] + result[..., index(b), :]) / 2
    return result


def _frames(people: dict, joint_set: str):
    """Yields, for each frame, [(identity, (joints, 2)), ...]."""
    converted = {i: as_joint_set(p, joint_set) for i, p in people.items()}
    for t in range(len(next(iter(people.values())))):
        yield [(i, p[t]) for i, p in converted.items() if np.isfinite(p[t]).all()]


def _flat(points: np.ndarray, score: float = 0.9) -> list[float]:
    rows = np.column_stack([points, np.full(len(points), score)])
    return [round(float(v), 4) for v in rows.ravel()]


def alphapose(path, people, joint_set="halpe26", with_ids=True):
    entries = [
        {
            "image_id": f"{t}.jpg",
            "category_id": 1,
            "keypoints": _flat(points),
            "score": 2.5,
            **({"idx": i} if with_ids else {}),
        }
        for t, frame in enumerate(_frames(people, joint_set))
        for i, points in frame
    ]
    path.write_text(json.dumps(entries))
    return path


def openpose(path, people, joint_set="body25", with_ids=True):
    path.mkdir(exist_ok=True)
    for t, frame in enumerate(_frames(people, joint_set)):
        persons = [
            {
                "person_id": [i if with_ids else -1],
                "pose_keypoints_2d": _flat(points),
                "face_keypoints_2d": [],
            }
            for i, points in frame
        ]
        file = path / f"clip_{t:012d}_keypoints.json"
        file.write_text(json.dumps({"version": 1.3, "people": persons}))
    return path


def mmpose(path, people, joint_set="coco17", with_ids=True):
    frames = []
    for t, frame in enumerate(_frames(people, joint_set)):
        instances = [
            {
                "keypoints": np.round(points, 4).tolist(),
                "keypoint_scores": [0.9] * len(points),
                "bbox": [[0.0, 0.0, 1.0, 1.0]],
                "bbox_score": 0.9,
                **({"track_id": i} if with_ids else {}),
            }
            for i, points in frame
        ]
        frames.append({"frame_id": t + 1, "instances": instances})
    meta = {"dataset_name": "coco", "num_keypoints": 17}
    path.write_text(json.dumps({"meta_info": meta, "instance_info": frames}))
    return path


def mediapipe(path, people, image_size, fps=30, joint_set="mediapipe33", with_ids=True):
    frames = []
    for frame in _frames(people, joint_set):
        poses = [
            [
                {"x": float(x), "y": float(y), "z": 0.0, "visibility": 0.9}
                for x, y in points / np.array(image_size)
            ]
            for _, points in frame
        ]
        ids = {"ids": [i for i, _ in frame]} if with_ids else {}
        frames.append({"pose_landmarks": poses, **ids} if frame else None)
    path.write_text(json.dumps({"image_size": list(image_size), "fps": fps, "frames": frames}))
    return path


def videopose3d(path, poses, image_size, joint_set="coco17", video="clip.mp4"):
    """Writes one person only, as the format has it."""
    layout = {"coco17": "coco", "h36m17": "h36m"}[joint_set]
    width, height = image_size
    metadata = {
        "layout_name": layout,
        "num_joints": 17,
        "keypoints_symmetry": [[1, 3], [2, 4]],
        "video_metadata": {video: {"w": width, "h": height, "fps": 30.0}},
    }
    positions = {video: {"custom": [as_joint_set(poses, joint_set).astype(np.float32)]}}
    np.savez_compressed(path, positions_2d=positions, metadata=metadata)
    return path


def array(path, poses, joint_set="h36m17"):
    np.save(path, as_joint_set(poses, joint_set).astype(np.float32))
    return path
