"""People by RTMPose, an extra for crowds: `rtmlib` runs it, and downloads its own networks.

T. Jiang et al., "RTMPose: Real-Time Multi-Person Pose Estimation based on MMPose",
arXiv:2303.07399
"""

import importlib.util
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np

from posemamba_jax.errors import UserError
from posemamba_jax.files.writing import write_text
from posemamba_jax.predict.detect.decode import Video, read_frames

# People of whom the mean confidence is less are none.
_MIN_SCORE = 0.3


def check_rtmpose() -> None:
    """Raises UserError where rtmlib is not installed."""
    if importlib.util.find_spec("rtmlib") is None:
        raise UserError(
            "--detector rtmpose: rtmlib is not installed; pip install 'posemamba-jax[rtmpose]' (or "
            "rtmlib), or leave the option out to use BlazePose"
        )


def write_keypoints(video: Video, path: Path, report: Callable[[int], None]) -> None:
    """Finds everybody in every frame, Halpe-26 joints, and writes them as AlphaPose does.

    Args:
      video: where. path: the file, replaced if it exists.
      report: hears how many frames are done.

    Raises:
      UserError: RTMPose cannot be started, which needs a network the first time.
    """
    from rtmlib import BodyWithFeet

    try:
        find = BodyWithFeet(mode="balanced", to_openpose=False, backend="onnxruntime", device="cpu")
    except Exception as error:  # whatever the download or ONNX Runtime raises
        raise UserError(
            f"--detector rtmpose: RTMPose cannot be started ({' '.join(str(error).split())})"
        ) from error
    people = []
    for frame, pixels in enumerate(read_frames(video, video.size)):
        keypoints, scores = find(np.ascontiguousarray(pixels[..., ::-1]))
        for points, score in zip(np.asarray(keypoints), np.asarray(scores), strict=True):
            if score.mean() >= _MIN_SCORE:
                flat = np.column_stack([points, np.clip(score, 0, None)]).ravel()
                person = {"image_id": f"{frame}.jpg", "keypoints": np.round(flat, 3).tolist()}
                people.append({**person, "score": round(float(score.mean()), 4)})
        report(1)
    write_text(path, json.dumps(people) + "\n")
