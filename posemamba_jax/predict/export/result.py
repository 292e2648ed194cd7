"""What a prediction consists of; every writer takes one."""

import dataclasses

import numpy as np

from posemamba_jax.predict.world.contract import Camera
from posemamba_jax.skeleton import H36M17, Skeleton


@dataclasses.dataclass(frozen=True)
class Result:
    """One person's motion. T frames, as many as the input; J joints.

    track: identity of the person.
    poses_3d: (T, J, 3) float32 in camera axes (x right, y down, z away from the camera), relative
        to the root joint; NaN in frames outside `segments`.
    poses_2d: (T, J, 3) float32, pixels and confidence: what was lifted, gaps filled; NaN as above.
    predicted: (T,) bool, frames with a pose.
    observed: (T,) bool, frames in which the person was seen; the others are interpolated.
    observed_joints: (T, J) bool, joints that were seen.
    segments: [start, stop) stretches with poses.
    root_translation: (T, 3) float32 place of the root in the units of poses_3d, zero unless asked
        for; NaN as above.
    frame_numbers: (T,) the input's own numbers.
    units: what one unit of poses_3d is.
    mm_per_unit: (T,) millimetres per unit of the model in each frame, by which poses_3d were
        multiplied; NaN where a millimetre is unknown.
    world_poses: (T, J, 3) millimetres in the room: x right, y up, z towards the camera, the origin
        on the ground below the camera; planted feet stand still. NaN as above; None if not sought.
    planted: (T, 2) bool, whether the left and the right foot stands on the ground; None likewise.
    camera: the camera in the room; None likewise.
    size: where the size of the person comes from, and how certain it is, in words.
    """

    track: int
    poses_3d: np.ndarray
    poses_2d: np.ndarray
    predicted: np.ndarray
    observed: np.ndarray
    observed_joints: np.ndarray
    segments: list[tuple[int, int]]
    root_translation: np.ndarray
    frame_numbers: np.ndarray
    fps: float
    image_size: tuple[int, int]
    units: str
    mm_per_unit: np.ndarray
    source: str
    source_format: str
    joint_set: str
    skeleton: Skeleton = H36M17
    world_poses: np.ndarray | None = None
    planted: np.ndarray | None = None
    camera: Camera | None = None
    size: str = ""

    @property
    def num_frames(self) -> int:
        return len(self.poses_3d)
