"""What there is to show: poses checked, turned upright and put where the pictures expect them.

All ways of showing a clip (video, GIF, web page) start from one `Clip`. Its space has x to the
right, y away from the viewer and z up, so that the ground is a plane of constant z.
"""

import dataclasses
import math
from fractions import Fraction

import numpy as np

from posemamba_jax.skeleton import H36M17, Skeleton

UP_AXES = ("-y", "y", "z")
# A root that stays within this share of the clip's extent is at the origin.
_ROOT_AT_ORIGIN = 1e-3


@dataclasses.dataclass(frozen=True)
class FilmCamera:
    """The camera that filmed a clip: a pinhole with its principal point in the image's middle.

    Attributes:
      focal_px: focal length in pixels of the image.
      rotation: (3, 3), turns the poses' axes into the camera's (x right, y down, z away).
      position: (3,) in the units and axes of the poses.
    """

    focal_px: float
    rotation: np.ndarray
    position: np.ndarray


@dataclasses.dataclass(frozen=True)
class Clip:
    """One clip, ready to be drawn.

    Attributes:
      poses: (tracks, frames, joints, 3) float32, upright; NaN where there is no pose.
      ground_truth: the same shape, or None.
      poses_2d: (tracks, frames, joints, 3) float32: x and y in pixels, confidence in 0..1; or None.
      observed: (tracks, frames) bool, False where the pose was filled in rather than seen.
      image_size: (width, height) in pixels that `poses_2d` refers to, or None.
      fps: frames per second as an exact fraction.
      skeleton, title, units: what names the joints, the clip and the lengths.
      track_names: one per track.
      up: the axis of the given poses that pointed up.
      camera: who filmed, in the space of `poses`; None if that is not known.
      ground: height of the ground; None puts it under the lowest joint.
      curves: (tracks, frames) values over time by name, with the unit in the name.
    """

    poses: np.ndarray
    ground_truth: np.ndarray | None
    poses_2d: np.ndarray | None
    observed: np.ndarray
    image_size: tuple[int, int] | None
    fps: Fraction
    skeleton: Skeleton
    title: str
    units: str
    track_names: tuple[str, ...]
    up: str = "-y"
    camera: "FilmCamera | None" = None
    ground: float | None = None
    curves: dict[str, np.ndarray] = dataclasses.field(default_factory=dict)

    @property
    def num_tracks(self) -> int:
        return self.poses.shape[0]

    @property
    def num_frames(self) -> int:
        return self.poses.shape[1]

    def points(self) -> np.ndarray:
        """Collects every finite joint of the clip, ground truth included, (n, 3)."""
        parts = [self.poses.reshape(-1, 3)]
        if self.ground_truth is not None:
            parts.append(self.ground_truth.reshape(-1, 3))
        points = np.concatenate(parts)
        points = points[np.isfinite(points).all(axis=1)]
        # A clip without a single pose still has a ground to show.
        return points if len(points) else np.array([[-1.0, -1.0, 0.0], [1.0, 1.0, 2.0]])


def prepare_clip(
    poses_3d,
    *,
    poses_2d=None,
    fps,
    ground_truth=None,
    image_size=None,
    mask=None,
    skeleton: Skeleton = H36M17,
    title: str = "",
    units: str = "mm",
    track_names=None,
    up: str = "-y",
    camera=None,
    ground: float | None = None,
    curves=None,
) -> Clip:
    """Checks a clip's arrays and turns them upright.

    Args:
      poses_3d: (frames, joints, 3), or (tracks, frames, joints, 3) for several people, in any
        unit. NaN or infinite joints are left out of the picture.
      poses_2d: the same leading shape and two or three channels: pixels and, if there is a third,
        the confidence.
      fps: frames per second, a positive number or a `Fraction`; see `exact_frame_rate`.
      ground_truth: like `poses_3d` and in the same units and space; subtract the root from both if
        it is to be drawn over a root-relative prediction.
      image_size: (width, height) in pixels, needed with `poses_2d`.
      mask: (frames,) or (tracks, frames) bool; False marks frames that were not observed.
      skeleton: names, bones and sides of the joints.
      title: text above the picture. Any text is safe, here and below.
      units: the name of the lengths' unit.
      track_names: one name per track; person 1, person 2 and so on if None.
      up: the axis that points up: "-y" for camera space (y runs down the image), "y" or "z".
      camera: who filmed: something with `focal_px`, `rotation` and `position` as `FilmCamera` has
        them; needs `image_size`.
      ground: where the ground lies along the axis that points up; None puts it under the lowest
        joint.
      curves: (frames,) or (tracks, frames) values over time, by a name that tells the unit.

    Tracks whose roots all stay at the origin (root-relative predictions of several people) are set
    side by side, because they would otherwise lie inside each other.

    Raises:
      ValueError: a shape does not fit, or a value is out of range; the message names the argument.
    """
    if up not in UP_AXES:
        raise ValueError(f"up is {up!r}, expected one of {', '.join(UP_AXES)}")
    poses = _as_tracks("poses_3d", poses_3d, skeleton, (3,))
    tracks, frames = poses.shape[:2]
    if frames == 0 or tracks == 0:
        raise ValueError(f"poses_3d has shape {np.shape(poses_3d)}: there is nothing to show")
    truth = None
    if ground_truth is not None:
        truth = _as_tracks("ground_truth", ground_truth, skeleton, (3,))
        _check_same_frames("ground_truth", truth, poses)
    keypoints = None
    if poses_2d is not None:
        keypoints = _as_keypoints(poses_2d, skeleton)
        _check_same_frames("poses_2d", keypoints, poses)
        if image_size is None:
            raise ValueError(
                "poses_2d is in pixels: give image_size=(width, height) or the video they are from"
            )
    if image_size is not None:
        image_size = _check_image_size(image_size)
    if track_names is None:
        track_names = [f"person {i + 1}" for i in range(tracks)]
    if len(track_names) != tracks:
        raise ValueError(f"track_names has {len(track_names)} names for {tracks} tracks")

    if camera is not None and image_size is None:
        raise ValueError("a camera needs image_size=(width, height) of what it filmed")
    poses = _turn_upright(poses, up)
    truth = None if truth is None else _turn_upright(truth, up)
    if tracks > 1 and camera is None:
        poses, truth = _set_side_by_side(poses, truth, skeleton.root)
    return Clip(
        poses=poses,
        ground_truth=truth,
        poses_2d=keypoints,
        observed=_as_observed(mask, tracks, frames),
        image_size=image_size,
        fps=exact_frame_rate(fps),
        skeleton=skeleton,
        title=str(title),
        units=str(units),
        track_names=tuple(str(name) for name in track_names),
        up=up,
        camera=None if camera is None else _turn_camera(camera, up),
        ground=None if ground is None else float(-ground if up == "-y" else ground),
        curves={
            str(name): _as_curve(name, values, tracks, frames)
            for name, values in (curves or {}).items()
        },
    )


def exact_frame_rate(fps) -> Fraction:
    """Makes the frame rate an exact fraction.

    Broadcast rates are written rounded (29.97, 23.976, 59.94) but mean n * 1000 / 1001; a rate
    within 0.005 of such a value and further from a whole number becomes it. Anything else is
    approximated to within a millionth.

    Raises:
      ValueError: not a positive finite number.
    """
    if isinstance(fps, Fraction):
        rate = fps
    else:
        try:
            value = float(fps)
        except (TypeError, ValueError):
            raise ValueError(f"fps is {fps!r}, expected a positive number") from None
        if not math.isfinite(value):
            raise ValueError(f"fps is {fps!r}, expected a positive number")
        broadcast = Fraction(math.ceil(value) * 1000, 1001)
        is_broadcast = math.ceil(value) in (24, 30, 48, 60, 120)
        if is_broadcast and abs(float(broadcast) - value) < 0.005:
            return broadcast
        rate = Fraction(value).limit_denominator(1000)
    if not 0 < rate <= 1000:
        raise ValueError(f"fps is {fps!r}, expected more than 0 and at most 1000")
    return rate


def bone_sides(skeleton: Skeleton) -> list[str]:
    """Tells for each bone "left", "right" or "middle": the side of the joint it ends in."""
    left, right = set(skeleton.left), set(skeleton.right)
    return [
        "left" if child in left else "right" if child in right else "middle"
        for _, child in skeleton.bones
    ]


@dataclasses.dataclass(frozen=True)
class Ground:
    """The ground plane: a square grid at height z.

    Attributes:
      centre: (x, y) of its middle.
      half: half its side.
      step: distance between grid lines, a round number.
      z: its height.
    """

    centre: tuple[float, float]
    half: float
    step: float
    z: float

    def lines(self) -> np.ndarray:
        """Makes the end points of the grid lines, (lines, 2, 3)."""
        offsets = np.arange(-self.half, self.half + self.step / 2, self.step)
        x, y = self.centre
        lines = []
        for offset in offsets:
            lines.append([(x + offset, y - self.half), (x + offset, y + self.half)])
            lines.append([(x - self.half, y + offset), (x + self.half, y + offset)])
        lines = np.array(lines)
        return np.concatenate([lines, np.full_like(lines[..., :1], self.z)], axis=-1)


def find_ground(clip: Clip) -> Ground:
    """Finds the ground under a clip with some room around its poses; see `Clip.ground` for its
    height.
    """
    points = clip.points()
    low, high = points.min(axis=0), points.max(axis=0)
    z = float(low[2]) if clip.ground is None else clip.ground
    size = max(float((high - low).max()), 1e-6)
    step = _round_step(size / 8)
    half = step * math.ceil((max(high[0] - low[0], high[1] - low[1]) / 2 + size / 10) / step)
    centre = (low[:2] + high[:2]) / 2
    return Ground((float(centre[0]), float(centre[1])), half, step, z)


def _round_step(length: float) -> float:
    """Rounds up to the nearest of 1, 2, 2.5, 5 times a power of ten."""
    power = 10.0 ** math.floor(math.log10(length))
    return next(m * power for m in (1, 2, 2.5, 5, 10) if m * power >= length * (1 - 1e-9))


def _as_tracks(name: str, array, skeleton: Skeleton, channels: tuple[int, ...]) -> np.ndarray:
    try:
        array = np.asarray(array, dtype=np.float32)
    except (TypeError, ValueError):
        raise ValueError(f"{name} is not an array of numbers") from None
    if array.ndim == 3:
        array = array[None]
    fits = array.ndim == 4 and array.shape[3] in channels
    if not fits or array.shape[2] != skeleton.num_joints:
        raise ValueError(
            f"{name} has shape {array.shape[-3:] if array.ndim == 4 else array.shape}, expected "
            f"(frames, {skeleton.num_joints}, {' or '.join(map(str, channels))}) for skeleton "
            f"{skeleton.name!r}, with an axis of tracks before it if there are several people"
        )
    return np.where(np.isfinite(array), array, np.float32(np.nan))


def _as_keypoints(poses_2d, skeleton: Skeleton) -> np.ndarray:
    keypoints = _as_tracks("poses_2d", poses_2d, skeleton, (2, 3))
    if keypoints.shape[-1] == 2:
        return np.concatenate([keypoints, np.ones_like(keypoints[..., :1])], axis=-1)
    keypoints[..., 2] = np.clip(np.nan_to_num(keypoints[..., 2]), 0, 1)
    return keypoints


def _as_observed(mask, tracks: int, frames: int) -> np.ndarray:
    if mask is None:
        return np.ones((tracks, frames), bool)
    mask = np.asarray(mask)
    if mask.shape not in ((frames,), (tracks, frames)):
        raise ValueError(
            f"mask has shape {mask.shape}, expected ({frames},) or ({tracks}, {frames})"
        )
    return np.broadcast_to(mask.astype(bool), (tracks, frames))


def _check_same_frames(name: str, array: np.ndarray, poses: np.ndarray) -> None:
    if array.shape[:2] != poses.shape[:2]:
        raise ValueError(
            f"{name} has {array.shape[0]} tracks of {array.shape[1]} frames, "
            f"poses_3d has {poses.shape[0]} of {poses.shape[1]}"
        )


def _check_image_size(image_size) -> tuple[int, int]:
    try:
        width, height = (int(side) for side in image_size)
    except (TypeError, ValueError):
        raise ValueError(f"image_size is {image_size!r}, expected (width, height)") from None
    if width < 1 or height < 1:
        raise ValueError(f"image_size is {image_size!r}, expected a width and height above 0")
    return width, height


def _turn_upright(poses: np.ndarray, up: str) -> np.ndarray:
    x, y, z = np.moveaxis(poses, -1, 0)
    # Every case is a rotation, never a mirror image: left stays left.
    axes = {"-y": (x, z, -y), "y": (x, -z, y), "z": (x, y, z)}[up]
    return np.stack(axes, axis=-1)


def _turn_camera(camera, up: str) -> FilmCamera:
    turn = _turn_upright(np.eye(3), up).T
    rotation, position = np.asarray(camera.rotation, float), np.asarray(camera.position, float)
    return FilmCamera(float(camera.focal_px), rotation @ turn.T, turn @ position)


def _as_curve(name, values, tracks: int, frames: int) -> np.ndarray:
    values = np.asarray(values, np.float32)
    if values.shape not in ((frames,), (tracks, frames)):
        raise ValueError(
            f"curves[{str(name)!r}] has shape {values.shape}, expected ({frames},) or "
            f"({tracks}, {frames})"
        )
    return np.broadcast_to(values, (tracks, frames))


def _set_side_by_side(poses, truth, root: int):
    size = float(np.nanmax(np.abs(poses), initial=0.0))
    if np.nanmax(np.abs(poses[:, :, root]), initial=0.0) > _ROOT_AT_ORIGIN * size:
        return poses, truth
    offset = np.zeros((len(poses), 1, 1, 3), poses.dtype)
    offset[..., 0] = (np.arange(len(poses)) - (len(poses) - 1) / 2)[:, None, None] * 1.2 * size
    return poses + offset, None if truth is None else truth + offset
