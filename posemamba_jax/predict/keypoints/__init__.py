"""2D keypoints from other people's detectors: files, joint sets, people over time."""

from posemamba_jax.data.joint_sets import JOINT_SETS, to_h36m17
from posemamba_jax.predict.keypoints.contract import (
    Detection,
    KeypointError,
    Keypoints2D,
    ReadOptions,
)
from posemamba_jax.predict.keypoints.formats import FORMATS, read_keypoints, with_image_size
from posemamba_jax.predict.keypoints.tracks import (
    Track,
    build_tracks,
    choose_tracks,
    drop_ghosts,
    fill_gaps,
    find_segments,
    observed_masks,
)

__all__ = [
    "FORMATS",
    "JOINT_SETS",
    "Detection",
    "KeypointError",
    "Keypoints2D",
    "ReadOptions",
    "Track",
    "build_tracks",
    "choose_tracks",
    "drop_ghosts",
    "fill_gaps",
    "find_segments",
    "observed_masks",
    "read_keypoints",
    "to_h36m17",
    "with_image_size",
]
