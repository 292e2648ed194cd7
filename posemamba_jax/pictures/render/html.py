"""A clip as one web page that needs no network: data, style and program are inside it."""

import base64
import html
import json
import re
from importlib import resources

import numpy as np

from posemamba_jax.files import writing
from posemamba_jax.pictures.render.figure import COLORS
from posemamba_jax.pictures.render.scene import Clip, bone_sides, find_ground


def write_html(path, clip: Clip) -> None:
    """Writes the page.

    Args:
      path: the file; its folder is made if need be.
      clip: what to show. Its title and names may be any text.
    """
    writing.write_text(path, build_page(clip))


def build_page(clip: Clip) -> str:
    """The page as text."""
    page = _read("viewer.html")
    parts = {
        "title": html.escape(clip.title or "Pose viewer"),
        "style": _fill(_read("viewer.css"), COLORS),
        "script": _read("viewer.js"),
        "clip": _as_script_json(_describe(clip)),
    }
    return _fill(page, parts)


def _describe(clip: Clip) -> dict:
    ground = find_ground(clip)
    points = clip.points()
    centre = (points.min(axis=0) + points.max(axis=0)) / 2
    radius = float(np.linalg.norm(points - centre, axis=1).max())
    return {
        "title": clip.title,
        "units": clip.units,
        "fps": [clip.fps.numerator, clip.fps.denominator],
        "frames": clip.num_frames,
        "joints": list(clip.skeleton.joints),
        "bones": [list(bone) for bone in clip.skeleton.bones],
        "sides": bone_sides(clip.skeleton),
        "root": clip.skeleton.root,
        "image_size": clip.image_size,
        "ground": {
            "centre": list(ground.centre),
            "half": ground.half,
            "step": ground.step,
            "z": ground.z,
        },
        "centre": [float(value) for value in centre],
        "radius": max(radius, 1e-6),
        "thickness": _person_size(clip) / 60,
        "travels": _travels(clip),
        "tracks": [
            {
                "name": name,
                "poses": _encode(clip.poses[i], "<f4"),
                "truth": None
                if clip.ground_truth is None
                else _encode(clip.ground_truth[i], "<f4"),
                "keypoints": None if clip.poses_2d is None else _encode(clip.poses_2d[i], "<f4"),
                "observed": _encode(clip.observed[i], "u1"),
            }
            for i, name in enumerate(clip.track_names)
        ],
    }


def _person_size(clip: Clip) -> float:
    """The typical extent of a single pose: bones must not grow with the way a person walks."""
    poses = clip.poses.reshape(-1, *clip.poses.shape[2:])
    poses = poses[np.isfinite(poses).all(axis=(1, 2))]
    if not len(poses):
        return 1.0
    return max(float(np.median(np.ptp(poses, axis=1).max(axis=1))), 1e-6)


def _travels(clip: Clip) -> bool:
    roots = clip.poses[:, :, clip.skeleton.root, :2]
    paths = [path[np.isfinite(path).all(axis=-1)] for path in roots]
    farthest = max(float(np.ptp(path, axis=0).max()) if len(path) else 0.0 for path in paths)
    return farthest > 0.5 * _person_size(clip)


def _encode(array: np.ndarray, dtype: str) -> str:
    return base64.b64encode(np.ascontiguousarray(array, dtype=dtype).tobytes()).decode("ascii")


def _as_script_json(value) -> str:
    """JSON that no text inside it can turn into markup, for the inside of a script element."""
    text = json.dumps(value, allow_nan=False)
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _fill(template: str, parts: dict[str, str]) -> str:
    # In one pass, so that what is filled in is never taken for a place to fill.
    return re.sub(r"\{\{(\w+)\}\}", lambda match: parts[match.group(1)], template)


def _read(name: str) -> str:
    return resources.files(__package__).joinpath("viewer", name).read_text(encoding="utf-8")
