"""Human3.6M with the stacked-hourglass detections that MotionBERT distributes."""

import dataclasses

from posemamba_jax.data.clips import ArrayClips, DataError
from posemamba_jax.data.sources.h36m_cache import SPLITS, open_split
from posemamba_jax.limits import Section
from posemamba_jax.skeleton import H36M17

FPS = 50.0
CAMERA_SUFFIX = 6  # "_ca_01" at the end of a source's name

# Recordings with drifted ground truth, which the authors' evaluation leaves out.
BROKEN_RECORDINGS = frozenset(
    {"s_09_act_05_subact_02", "s_09_act_10_subact_02", "s_09_act_13_subact_01"}
)


@dataclasses.dataclass(frozen=True)
class H36MConfig(Section, path="data.h36m"):
    """Where Human3.6M is.

    Attributes:
      path: h36m_sh_conf_cam_source_final.pkl.
      cache_dir: where its converted form is kept (about the file's size); beside it if None.
      cover_ends: whether test clips also cover the frames behind a recording's last whole clip,
        which the authors' protocol leaves out.
    """

    path: str = "data/h36m/h36m_sh_conf_cam_source_final.pkl"
    cache_dir: str | None = None
    cover_ends: bool = False


def build(
    options: H36MConfig,
    *,
    clip_len: int,
    stride: int,
    split: str,
    input_2d: str = "detected",
) -> ArrayClips:
    """Makes the clips of Human3.6M.

    Args:
      options: where the file is.
      clip_len, stride: frames in a clip and between the starts of neighbouring clips.
      split: "train" (subjects 1, 5, 6, 7, 8) or "test" (9, 11).
      input_2d: "detected" or "ground_truth".

    Raises:
      DataError: the file cannot be used; the message says what is wrong with it.
    """
    if split not in SPLITS:
        raise DataError(f"split is {split!r}, expected one of {', '.join(SPLITS)}")
    arrays = open_split(options.path, split, options.cache_dir)
    broken = {
        recording.subject_source
        for recording in arrays.recordings
        if recording.subject_source[:-CAMERA_SUFFIX] in BROKEN_RECORDINGS
    }
    return ArrayClips(
        "h36m",
        arrays.recordings,
        skeleton=H36M17,
        poses_2d=arrays.poses_2d if input_2d == "detected" else None,
        poses_3d=arrays.poses_3d,
        poses_3d_mm=arrays.poses_3d_mm,
        mm_per_unit=arrays.mm_per_unit,
        clip_len=clip_len,
        stride=stride,
        fps=FPS,
        cover_end=options.cover_ends and split == "test",
        excluded_from_evaluation=frozenset(broken),
        check=False,  # done once, when the cache was written
    )
