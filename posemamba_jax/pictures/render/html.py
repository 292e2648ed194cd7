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
from posemamba_jax.pictures.render.video import Film

# The program, in the order in which its parts need each other.
SCRIPTS = ("data.js", "scene.js", "film.js", "graph.js", "controls.js")


def write_html(path, clip: Clip, film: Film | None = None) -> None:
    """Writes the page.

    Args:
      path: the file; its folder is made if need be.
      clip: what to show. Its title and names may be any text.
      film: the video to play beside it, frame i with frame i of the clip.
    """
    writing.write_text(path, build_page(clip, film))


def build_page(clip: Clip, film: Film | None = None) -> str:
    """Makes the page as text."""
    page = _read("viewer.html")
    parts = {
        "title": html.escape(clip.title or "Pose viewer"),
        "style": _fill(_read("viewer.css"), COLORS),
        "script": "\n".join(map(_read, SCRIPTS)),
        "clip": _as_script_json(_describe(clip) | _describe_film(film)),
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
        "person_size": _person_size(clip),
        "thickness": _person_size(clip) / 48,
        "up": clip.up,
        "camera": _describe_camera(clip),
        "curves": [
            {"name": name, "tracks": [_encode(track, "<f4") for track in values]}
            for name, values in clip.curves.items()
        ],
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


def _describe_film(film: Film | None) -> dict:
    if film is None:
        return {"video": None, "video_seconds": 0, "video_sound": False}
    return {
        "video": base64.b64encode(film.data).decode("ascii"),
        "video_seconds": float(film.seconds),
        "video_sound": film.sound,
    }


def _describe_camera(clip: Clip) -> dict | None:
    if clip.camera is None:
        return None
    return {
        "focal_px": clip.camera.focal_px,
        "rotation": clip.camera.rotation.tolist(),
        "position": clip.camera.position.tolist(),
        "image_size": clip.image_size,
    }


def _person_size(clip: Clip) -> float:
    """Finds the typical extent of a single pose: bones must not grow with the way a person
    walks.
    """
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
    """Writes JSON that no text inside it can turn into markup, for the inside of a script
    element.
    """
    text = json.dumps(value, allow_nan=False)
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _fill(template: str, parts: dict[str, str]) -> str:
    # In one pass, so that what is filled in is never taken for a place to fill.
    return re.sub(r"\{\{(\w+)\}\}", lambda match: parts[match.group(1)], template)


def _read(name: str) -> str:
    return resources.files(__package__).joinpath("viewer", name).read_text(encoding="utf-8")
