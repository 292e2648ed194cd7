"""Small files in the formats of PoseTrack18 and InstaVariety."""

import json

import numpy as np

POSETRACK_NAMES = (
    *("nose", "neck", "head", "l_ear", "r_ear", "l_shoulder", "r_shoulder", "l_elbow", "r_elbow"),
    *("l_wrist", "r_wrist", "l_hip", "r_hip", "l_knee", "r_knee", "l_ankle", "r_ankle"),
)


def make_video(tracks=None, images=40, seed=0) -> dict:
    """Makes one video; `tracks` says in which of the images each track is seen."""
    rng = np.random.default_rng(seed)
    tracks = {0: range(images), 1: range(5)} if tracks is None else tracks
    annotations = []
    for image in range(images):
        for track, seen in tracks.items():
            if image not in seen:
                continue
            keypoints = np.ones((17, 3))
            keypoints[:, :2] = rng.uniform(100, 500, (17, 2)) + (3 * image, 0)
            keypoints[3:5] = 0  # ears are never marked
            annotations.append(
                {
                    "image_id": 1000 + image,
                    "track_id": track,
                    "keypoints": keypoints.ravel().tolist(),
                }
            )
    listed = [{"id": 1000 + i, "file_name": f"images/{i:06d}.jpg"} for i in range(images)]
    return {"images": listed, "annotations": annotations, "categories": []}


def write_posetrack(folder, *videos):
    folder.mkdir(exist_ok=True)
    for n, video in enumerate(videos):
        (folder / f"{n:06d}_train.json").write_text(json.dumps(video))
    return str(folder)


def write_instavariety(folder, lengths=(30, 6, 12), seed=0, change=lambda motion, ids: None):
    """Tracks whose belly and head are unseen, as in the real file."""
    rng = np.random.default_rng(seed)
    rows = sum(lengths)
    motion = rng.uniform(-1, 1, (rows, 17, 3))
    motion[..., 2] = rng.uniform(0.2, 1, (rows, 17))
    motion[:, [7, 10]] = 0
    ids = np.repeat(np.arange(len(lengths), dtype=np.float64), lengths)
    change(motion, ids)
    folder.mkdir(exist_ok=True)
    np.save(folder / "motion_all.npy", motion)
    np.save(folder / "id_all.npy", ids)
    return {
        "motion_path": str(folder / "motion_all.npy"),
        "id_path": str(folder / "id_all.npy"),
    }
