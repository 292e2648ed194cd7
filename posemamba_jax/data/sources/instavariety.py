"""InstaVariety's 2D tracks in the two .npy files that MotionBERT trains on.

    motion_all.npy   (rows, 17, 3) x, y, confidence, joints as in Human3.6M-17, normalised
    id_all.npy       (rows,) which track a row belongs to; a change starts a new one

MotionBERT's preparation fits each track's bounding box into -1..1 and measures x and y from the
first frame's root; the poses are used as they are. Belly and head were never detected and have
confidence 0.
"""

import dataclasses

import numpy as np

from posemamba_jax.data.clips import ArrayClips, DataError, Recording, check_finite, runs
from posemamba_jax.data.sources.clips_2d import build_clips_2d, refuse_test_split
from posemamba_jax.files.reading import check_regular, user_path
from posemamba_jax.limits import Section
from posemamba_jax.skeleton import H36M17

FPS = 30.0


@dataclasses.dataclass(frozen=True)
class InstaVarietyConfig(Section, path="data.instavariety"):
    """Where InstaVariety is.

    Attributes:
      motion_path: motion_all.npy.
      id_path: id_all.npy.
    """

    motion_path: str = "data/motion2d/InstaVariety/motion_all.npy"
    id_path: str = "data/motion2d/InstaVariety/id_all.npy"


def build(
    options: InstaVarietyConfig, *, clip_len: int, stride: int, split: str, input_2d: str
) -> ArrayClips:
    """Makes training clips of 2D poses; the file of poses is mapped into memory, not read.

    Args:
      options: where the files are.
      clip_len, stride: frames in a clip and between the starts of neighbouring clips.
      split: "train".
      input_2d: not used: the poses are detections, and there are no others.

    Raises:
      DataError: a file cannot be used, or the test split is asked for.
    """
    del input_2d
    refuse_test_split("instavariety", split)
    poses = _open(options.motion_path, "motion_path")
    ids = _open(options.id_path, "id_path")
    if poses.ndim != 3 or poses.shape[1:] != (17, 3) or not len(poses):
        raise DataError(f"{options.motion_path} has shape {poses.shape}, expected (rows, 17, 3)")
    if ids.shape != (len(poses),):
        raise DataError(
            f"{options.id_path} has shape {ids.shape}, expected ({len(poses)},): one number for "
            f"each row of {options.motion_path}"
        )
    check_finite(ids, options.id_path)
    check_finite(poses, options.motion_path)
    recordings = [Recording(f"track {ids[start]:g}", "", start, stop) for start, stop in runs(ids)]
    return build_clips_2d(
        "instavariety",
        recordings,
        poses,
        skeleton=H36M17,
        clip_len=clip_len,
        stride=stride,
        fps=FPS,
        input_2d="detected",
        check=False,
    )


def _open(path: str, option: str) -> np.ndarray:
    place = user_path(path)
    if place.exists():
        check_regular(place)
    try:
        array = np.load(place, mmap_mode="r", allow_pickle=False)
    except FileNotFoundError as error:
        raise DataError(
            f"cannot open {path}: {error.strerror}; set data.instavariety.{option} to where it is "
            "(docs/pretraining.md says how to get it)"
        ) from error
    # A damaged header can raise nearly anything; all of it means the same here.
    except Exception as error:
        # NumPy's further lines advise to load what could run code.
        reason = str(error).partition("\n")[0]
        raise DataError(f"{path} is not a complete .npy file of numbers ({reason})") from error
    if not isinstance(array, np.ndarray) or array.dtype.kind not in "fiu":
        kind = array.dtype if isinstance(array, np.ndarray) else type(array).__name__
        raise DataError(f"{path} holds {kind}, expected an array of real numbers")
    return array
