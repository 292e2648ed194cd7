"""VideoPose3D's 2D files: positions_2d {video: {action: [(frames, joints, 2) per camera]}}."""

from pathlib import Path
from typing import Any

import numpy as np

from posemamba_jax.files import json_reading as parsing
from posemamba_jax.predict.keypoints import arrays
from posemamba_jax.predict.keypoints.contract import KeypointError, Keypoints2D, ReadOptions

_LAYOUTS = {"coco": "coco17", "h36m": "h36m17"}


def read(path: Path, members: dict[str, Any], options: ReadOptions) -> Keypoints2D:
    """Reads one clip. A file with several needs `options.clip`, VIDEO/ACTION/CAMERA or VIDEO.

    `metadata` gives the joint set (layout_name) and, in video_metadata, the size of the image.
    """
    clips = _clips(_unwrap(members["positions_2d"]), path)
    name = _choose(clips, options.clip, path)
    video = name.split("/")[0]
    metadata = _unwrap(members.get("metadata"))
    metadata = metadata if isinstance(metadata, dict) else {}
    joint_set = options.joint_set
    layout = metadata.get("layout_name")
    if joint_set is None and isinstance(layout, str):
        joint_set = _LAYOUTS.get(layout)
    plain = {"keypoints": clips[name]}
    videos = metadata.get("video_metadata")
    about = videos.get(video) if isinstance(videos, dict) else None
    if isinstance(about, dict) and "w" in about and "h" in about:
        where = f"metadata of video {parsing.quote(video)}"
        plain["image_size"] = parsing.image_size([about["w"], about["h"]], path, where)
        if about.get("fps") is not None:
            plain["fps"] = parsing.frame_rate(about["fps"], path, where)
    try:
        read = arrays.read(
            path, plain, ReadOptions(joint_set=joint_set, coordinates=options.coordinates)
        )
    except KeypointError as error:
        text = str(error).replace("array 'keypoints'", f"clip {parsing.quote(name)}")
        raise KeypointError(text) from None
    notes = (f"clip {parsing.quote(name)}", *read.notes)
    return Keypoints2D(**{**vars(read), "format": "videopose3d", "notes": notes})


def _unwrap(value: Any) -> Any:
    """Takes the object out of a 0-dimensional array, as np.savez stores a dictionary."""
    if isinstance(value, np.ndarray) and value.dtype == object and value.size == 1:
        return value.reshape(-1)[0]
    return value


def _clips(positions: Any, path: Path) -> dict[str, np.ndarray]:
    """Lists the clips of the file: VIDEO/ACTION/CAMERA -> (frames, joints, channels)."""
    if not isinstance(positions, dict) or not positions:
        raise KeypointError(
            f"{path}: 'positions_2d' must hold {{video: {{action: [arrays]}}}}, found "
            f"{parsing.quote(positions)}"
        )
    clips = {}
    for video, actions in positions.items():
        if not isinstance(actions, dict):
            raise KeypointError(
                f"{path}: positions_2d[{parsing.quote(video)}]: expected {{action: [arrays]}}, "
                f"found {parsing.quote(actions)}"
            )
        for action, cameras in actions.items():
            where = f"positions_2d[{parsing.quote(video)}][{parsing.quote(action)}]"
            if isinstance(cameras, np.ndarray) and cameras.ndim == 3:
                cameras = [cameras]
            if not isinstance(cameras, list | tuple | np.ndarray):
                raise KeypointError(
                    f"{path}: {where}: expected a list of arrays (frames, joints, 2), found "
                    f"{parsing.quote(cameras)}"
                )
            for camera, keypoints in enumerate(cameras):
                if not isinstance(keypoints, np.ndarray) or keypoints.ndim != 3:
                    raise KeypointError(
                        f"{path}: {where}[{camera}]: expected an array (frames, joints, 2), found "
                        f"shape {list(np.shape(keypoints))}"
                    )
                clips[f"{video}/{action}/{camera}"] = keypoints
    if not clips:
        raise KeypointError(f"{path}: 'positions_2d' holds no clips")
    return clips


def _choose(clips: dict[str, np.ndarray], wanted: str | None, path: Path) -> str:
    if wanted is None:
        found = list(clips)
    else:
        found = [n for n in clips if n == wanted or n.startswith(f"{wanted.rstrip('/')}/")]
    if len(found) == 1:
        return found[0]
    shown = ", ".join(parsing.quote(n) for n in list(clips)[:6]) + (
        ", ..." if len(clips) > 6 else ""
    )
    problem = f"{len(found)} clips match" if wanted is not None else f"holds {len(clips)} clips"
    raise KeypointError(f"{path}: {problem}; name one with --clip, of {shown}")
