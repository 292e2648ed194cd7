"""People in a room before a known camera, seen and lifted with errors."""

import dataclasses

import numpy as np

from posemamba_jax.data.formats.recordings import ReadOptions, RecordingReader
from posemamba_jax.data.motion.actions import perform
from posemamba_jax.data.motion.body import draw_body
from posemamba_jax.data.sources.mocap import MocapConfig
from posemamba_jax.predict.world import Camera, Sighting, World

ANKLES = [6, 3]


@dataclasses.dataclass
class Room:
    """Truth in world axes (y up, z towards the camera, origin below it) and what is seen of it."""

    camera: Camera
    truth: list[np.ndarray]
    people: list[Sighting]
    fps: float


def make_camera(focal=1150.0, tilt=10.0, roll=0.0, height=1500.0, size=(1920, 1080)) -> Camera:
    """Places a camera `height` mm above the ground that looks along -z and down; angles in
    degrees.
    """
    a, r = np.radians([tilt, roll])
    view = np.array([0, -np.sin(a), -np.cos(a)])
    right, down = np.array([1.0, 0, 0]), np.cross(view, [1.0, 0, 0])
    axes = [np.cos(r) * right + np.sin(r) * down, np.cos(r) * down - np.sin(r) * right, view]
    return Camera(focal, 0.0, "given", size, np.stack(axes), height)


def generate(seed: int, action: str, seconds: float = 6.0, fps: float = 30.0) -> np.ndarray:
    """Generates (frames, 17, 3) motion on the ground around the origin, millimetres, y up."""
    rng = np.random.default_rng(seed)
    points = perform(action, rng, draw_body(rng), np.arange(round(seconds * fps)) / fps)
    return points - points[:, :1].mean(0) * np.array([1, 0, 1])


def read_mocap(path, fps: float = 30.0) -> np.ndarray:
    """Reads the same of a recording; its lowest planted ankles are put where ankles are."""
    config = MocapConfig()
    options = ReadOptions(
        fps, config.amc_fps, config.asf_unit_mm, config.bvh_mm_per_unit, config.up_axis, ()
    )
    points = np.asarray(RecordingReader(options, None).read(path), float)
    points[..., 1] += 70 - np.percentile(points[:, ANKLES, 1], 10)
    return points - points[:, :1].mean(0) * np.array([1, 0, 1])


def watch(
    camera: Camera, motions, *, fps=30.0, noise=0.01, lifting_mm=0.0, shrink=1.0, seed=0
) -> Room:
    """Computes what a detector and a lifter make of people who are seen by a camera.

    Args:
      motions: (frames, 17, 3) world millimetres each.
      noise: standard deviation of keypoints, as a share of the person's extent in the image.
      lifting_mm: size of errors of the lifted joints: a part that stays, a part that drifts.
      shrink: factor on the lifted depths.
    """
    rng = np.random.default_rng(seed)
    people = []
    for points in motions:
        local = camera.to_camera(points)
        pixels = camera.project(points)
        extent = np.median(np.ptp(pixels, axis=1).max(-1))
        error = 0.6 * rng.standard_normal(pixels.shape) + 0.8 * drifting(rng, pixels.shape, 3)
        lifted = local - local[:, :1]
        stays = rng.standard_normal((1, 17, 3)) * (0.5, 0.5, 1.0)
        drifts = drifting(rng, lifted.shape, 8) * (0.6, 0.6, 1.4)
        lifted = (lifted + lifting_mm * (stays + drifts)) * (1, 1, shrink)
        people.append(
            Sighting(
                pixels + noise * extent * error,
                np.ones(pixels.shape[:2]),
                lifted - lifted[:, :1],
                [(0, len(points))],
            )
        )
    return Room(camera, list(motions), people, fps)


def drifting(rng, shape, frames: int) -> np.ndarray:
    """Draws noise of variance 1 that is smooth over some frames."""
    kernel = np.exp(-(np.arange(-3 * frames, 3 * frames + 1) ** 2) / (2 * frames**2))
    kernel /= np.sqrt((kernel**2).sum())
    white = rng.standard_normal((shape[0] + len(kernel) - 1, int(np.prod(shape[1:]))))
    columns = [np.convolve(column, kernel, "valid") for column in white.T]
    return np.stack(columns, -1).reshape(shape)


def path_error_mm(room: Room, world: World, person: int = 0) -> tuple[float, float]:
    """Returns the mean distance of the root from the truth, and the same with both paths
    centred.
    """
    found, true = world.people[person].poses[:, 0], room.truth[person][:, 0]
    apart = found - true
    return (
        float(np.linalg.norm(apart, axis=-1).mean()),
        float(np.linalg.norm(apart - apart.mean(0), axis=-1).mean()),
    )


def foot_drift_mm_s(room: Room, world: World, person: int = 0, still_mm_s: float = 60.0) -> float:
    """Returns the mean speed of the ankles found while the true ones stand still."""
    speeds = [
        np.linalg.norm(np.diff(poses[:, ANKLES], axis=0), axis=-1) * room.fps
        for poses in (room.truth[person], world.people[person].poses)
    ]
    return float(speeds[1][speeds[0] < still_mm_s].mean())
