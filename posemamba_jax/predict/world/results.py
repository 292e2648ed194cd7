"""From lifted people to people in a room: adds the world to results."""

import dataclasses
import math
import subprocess

import numpy as np

from posemamba_jax.predict import scale
from posemamba_jax.predict.export.result import Result
from posemamba_jax.predict.world.contract import Sighting, World
from posemamba_jax.predict.world.focal import Focal, focal_from_metadata, guess_focal, known_focal
from posemamba_jax.predict.world.place import find_world


def add_world(
    results: list[Result], *, focal_px: float | None = None, video: str | None = None
) -> tuple[list[Result], list[str]]:
    """Finds where everybody is and writes it into their results.

    Args:
      results: of one clip, lifted.
      focal_px: focal length in pixels, if it is known.
      video: whose metadata may tell it otherwise.

    Returns:
      the results with a world (as they were if none can be found), and remarks for the user.
    """
    sizes = [_in_millimetres(result) for result in results]
    problems = [size for size in sizes if isinstance(size, str)]
    if problems:
        return results, [f"no world: {problems[0]}"]
    first = results[0]
    focal = _find_focal(focal_px, video, first.image_size)
    assumed = first.units != "mm"
    deviation = scale.DEFAULT_DEVIATION if assumed else 0.0
    people = [
        Sighting(result.poses_2d[..., :2], result.poses_2d[..., 2], poses, result.segments)
        for result, poses in zip(results, sizes, strict=True)
    ]
    try:
        world = find_world(people, first.image_size, first.fps, focal, deviation)
    except (ValueError, RuntimeError, np.linalg.LinAlgError) as error:
        return results, [f"no world: {error}"]
    size = _describe_size(assumed)
    placed = [
        dataclasses.replace(
            result,
            world_poses=person.poses,
            planted=person.planted,
            camera=world.camera,
            size=size,
        )
        for result, person in zip(results, world.people, strict=True)
    ]
    return placed, [_describe_camera(world), f"size: {size}", *world.notes]


def _in_millimetres(result: Result) -> np.ndarray | str:
    """Returns (T, 17, 3) root-relative millimetres, or what is wrong, in words, if there are
    none.
    """
    if result.units == "mm":
        return result.poses_3d
    try:
        factor = scale.find_mm_per_unit(
            result.poses_3d, result.segments, result.observed_joints, result.fps
        )
    except ValueError as error:
        return f"person {result.track}: {error}"
    return result.poses_3d * factor[:, None, None]


def _find_focal(focal_px: float | None, video: str | None, image_size: tuple[int, int]) -> Focal:
    if focal_px is not None:
        return known_focal(focal_px)
    told = None if video is None else focal_from_metadata(_metadata(video), image_size)
    return told or guess_focal(image_size)


def _metadata(video: str) -> str:
    """Asks FFmpeg what it says about a file."""
    import imageio_ffmpeg

    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-hide_banner", "-i", str(video)]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True)
    return done.stderr.decode(errors="replace")


def _describe_size(assumed: bool) -> str:
    if not assumed:
        return "as given"
    percent = 100 * scale.DEFAULT_DEVIATION
    return (
        f"an adult of {scale.DEFAULT_HEIGHT_MM / 10:.0f} cm is assumed, so all lengths and "
        f"distances are uncertain by {percent:.1f} % (one standard deviation); give --height_mm"
    )


def _describe_camera(world: World) -> str:
    camera = world.camera
    words = f"camera: focal length {camera.focal_px:.0f} px, {camera.focal_source}"
    if camera.focal_deviation:
        words += f", give or take {100 * camera.focal_deviation:.0f} %"
    return (
        f"{words}; {camera.height / 1000:.1f} m above the ground, looking down by "
        f"{math.degrees(camera.tilt):.0f} degrees, rolled by {math.degrees(camera.roll):.0f}"
    )
