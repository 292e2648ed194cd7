"""The contract of clip sources, and the one that cuts its clips out of rows of arrays.

Shapes: frames = clip_len, joints = those of the source's skeleton; rows = frames of all recordings
laid end to end.
"""

from collections.abc import Sequence
from typing import NamedTuple, Protocol

import numpy as np

from posemamba_jax.errors import DataError
from posemamba_jax.skeleton import Skeleton

_ROWS_PER_CHECK = 65536


class ClipSource(Protocol):
    """What the pipeline, the evaluation and the baselines need to know of a data set.

    `source[i]` is a dictionary (see docs/architecture.md):

        poses_2d     (frames, joints, 3) float32: x, y normalised to the image width, confidence
        poses_3d     (frames, joints, 3) float32: target in the same units, not root-relative
        poses_3d_mm  (frames, joints, 3) float32: what evaluation compares with, in millimetres
        mm_per_unit  (frames,) float32: millimetres per unit of poses_3d
        frame_ids    (frames,) int64: identifies a frame within the source
        subject_source, action: str

    The source's `skeleton` says what the joints are: their names and order, the root, what hangs
    together, and which ones trade places in a mirror. Everything that handles its clips takes it
    from there.

    A source without a scale leaves out poses_3d_mm and mm_per_unit; it can be trained on but not
    evaluated. One of 2D poses only leaves out poses_3d too and says so by `has_3d = False`. Others
    may also have `excluded_from_evaluation`, a set of `subject_source` values, `protocol`, the name
    of the protocol that scores them ("h36m" where there is none), and `input_2d`, whether poses_2d
    is "ground_truth" or "detected".

    A source with recordings shorter than a clip may pad them with their last frame: it says so by
    `has_padding = True`, and its clips have `frame_mask` (frames,) bool, False where padded, so
    that the loss leaves those frames out.

    A source that makes training clips anew in every epoch has `draw(i, rng)`. It returns a clip
    such as `source[i]`, of which everything that is random comes from the `numpy.random.Generator`
    it is given; the pipeline seeds that with the run's seed and the clip's position in the stream,
    so that a clip differs from epoch to epoch and a resumed run sees the same ones.
    """

    name: str
    clip_len: int
    skeleton: Skeleton
    fps: float

    @property
    def num_joints(self) -> int: ...

    def __len__(self) -> int: ...

    def __getitem__(self, i: int) -> dict: ...


def check_skeleton(expected: Skeleton, whose: str, source: ClipSource) -> None:
    """Refuses a source whose joints are not those expected.

    Args:
      expected: the skeleton of a model, a checkpoint or a setting.
      whose: what the message calls that.
      source: whose skeleton is compared.

    Raises:
      DataError: names the first joint that differs.
    """
    difference = expected.first_difference(source.skeleton)
    if difference:
        raise DataError(
            f"{source.name} has the skeleton {source.skeleton.name}, but {whose} has "
            f"{expected.name}: {difference}"
        )


class Recording(NamedTuple):
    """One uninterrupted sequence: the rows start..stop-1 of a source's arrays."""

    subject_source: str
    action: str
    start: int
    stop: int


def clip_offsets(length: int, clip_len: int, stride: int, *, cover_end: bool = False) -> np.ndarray:
    """Cuts a recording of `length` frames into clips: the frames of each.

    Windows of clip_len frames start every `stride` frames. A recording shorter than clip_len gives
    one clip of its frames in order, evenly repeated, so that no recording is lost. Frames behind
    the last window of a longer one are left out, as in the authors' protocol, unless `cover_end`
    adds a window that ends with the recording.

    Returns:
      (clips, clip_len) int64 offsets in 0..length-1.

    Raises:
      ValueError: length, clip_len or stride is not positive.
    """
    if min(length, clip_len, stride) < 1:
        raise ValueError(
            f"length {length}, clip_len {clip_len} and stride {stride} must all be at least 1"
        )
    frames = np.arange(clip_len, dtype=np.int64)
    if length < clip_len:
        return (frames * length // clip_len)[None]
    starts = np.arange(0, length - clip_len + 1, stride, dtype=np.int64)
    if cover_end and starts[-1] + clip_len < length:
        starts = np.append(starts, length - clip_len)
    return starts[:, None] + frames


def runs(values: Sequence) -> list[tuple[int, int]]:
    """Finds the (start, stop) of each stretch of equal neighbours."""
    values = np.asarray(values)
    changes = np.flatnonzero(values[1:] != values[:-1]) + 1
    edges = [0, *changes.tolist(), len(values)]
    return [(a, b) for a, b in zip(edges, edges[1:], strict=False) if a < b]


class ArrayClips:
    """Clips whose frames are rows of arrays, in memory or memory-mapped.

    Args:
      name: what messages and reports call the source.
      recordings: the sequences that the rows hold; clips stay inside one.
      skeleton: what the joints are.
      poses_2d: (rows, joints, 3) x, y, confidence; None for ground-truth 2D, which is the x, y of
        poses_3d with confidence 1.
      poses_3d: (rows, joints, 3); None where there are 2D poses only.
      poses_3d_mm: (rows, joints, 3) millimetres; None where there is no scale.
      mm_per_unit: (rows,) millimetres per unit of poses_3d; None where there is no scale.
      clip_len: frames in a clip.
      stride: frames between the starts of neighbouring clips of a recording.
      fps: frames per second.
      cover_end: see `clip_offsets`.
      pad: whether a recording shorter than a clip is padded with its last frame, which
        `frame_mask` then says, instead of its frames being repeated evenly.
      offsets: for each recording the (clips, clip_len) frames of its clips, where they are not to
        be those of `clip_offsets`; stride and cover_end then mean nothing.
      excluded_from_evaluation: `subject_source` of recordings that evaluation leaves out.
      protocol: name of the protocol that scores these clips.
      input_2d: "ground_truth" or "detected"; by default the latter if poses_2d is given.
      check: whether to look for values that are not finite (reads all rows once).

    Attributes:
      index: (clips, clip_len) int64 row of each clip's frames.

    Raises:
      DataError: shapes that do not fit each other, no recordings, or a value that is not finite.
      ValueError: clip_len or stride is not positive.
    """

    def __init__(
        self,
        name: str,
        recordings: Sequence[Recording],
        *,
        skeleton: Skeleton,
        poses_2d: np.ndarray | None,
        poses_3d: np.ndarray | None = None,
        poses_3d_mm: np.ndarray | None = None,
        mm_per_unit: np.ndarray | None = None,
        clip_len: int,
        stride: int,
        fps: float,
        cover_end: bool = False,
        pad: bool = False,
        offsets: Sequence[np.ndarray] | None = None,
        excluded_from_evaluation: frozenset[str] = frozenset(),
        protocol: str = "h36m",
        input_2d: str | None = None,
        check: bool = True,
    ):
        self.name = name
        self.skeleton = skeleton
        self.recordings = [Recording(*recording) for recording in recordings]
        self.arrays = {
            "poses_2d": poses_2d,
            "poses_3d": poses_3d,
            "poses_3d_mm": poses_3d_mm,
            "mm_per_unit": mm_per_unit,
        }
        self.arrays = {key: array for key, array in self.arrays.items() if array is not None}
        self.clip_len = clip_len
        self.fps = fps
        self.excluded_from_evaluation = frozenset(excluded_from_evaluation)
        self.protocol = protocol
        self.input_2d = input_2d or ("ground_truth" if poses_2d is None else "detected")
        self._check_shapes()
        if check:
            for key, array in self.arrays.items():
                check_finite(array, f"{name}: {key}", self.recordings)

        if offsets is None:
            offsets = [
                clip_offsets(r.stop - r.start, clip_len, stride, cover_end=cover_end)
                if not pad or r.stop - r.start >= clip_len
                else np.minimum(np.arange(clip_len), r.stop - r.start - 1)[None]
                for r in self.recordings
            ]
        self.has_padding = pad and any(r.stop - r.start < clip_len for r in self.recordings)
        self.index = np.concatenate(
            [rows + r.start for rows, r in zip(offsets, self.recordings, strict=True)]
        )
        self._recording_of_clip = np.repeat(
            np.arange(len(offsets)), [len(rows) for rows in offsets]
        )

    @property
    def num_joints(self) -> int:
        return self.skeleton.num_joints

    @property
    def has_3d(self) -> bool:
        return "poses_3d" in self.arrays

    @property
    def _main_array(self) -> np.ndarray:
        return self.arrays["poses_3d" if self.has_3d else "poses_2d"]

    def __len__(self) -> int:
        return len(self.index)

    def __getitem__(self, i: int) -> dict:
        rows = self.index[i]
        clip = {k: np.asarray(array[rows], np.float32) for k, array in self.arrays.items()}
        if "poses_2d" not in clip:
            clip["poses_2d"] = clip["poses_3d"].copy()
            clip["poses_2d"][..., 2] = 1
        recording = self.recordings[self._recording_of_clip[i]]
        clip["frame_ids"] = rows.copy()
        if self.has_padding:
            clip["frame_mask"] = np.append(True, np.diff(rows) > 0)
        clip["subject_source"] = recording.subject_source
        clip["action"] = recording.action
        return clip

    def _check_shapes(self):
        if not self.recordings:
            raise DataError(f"{self.name}: no recordings, so there is nothing to cut clips from")
        if ("poses_3d_mm" in self.arrays) != ("mm_per_unit" in self.arrays):
            raise DataError(f"{self.name}: poses_3d_mm and mm_per_unit come together or not at all")
        if not {"poses_2d", "poses_3d"} & self.arrays.keys():
            raise DataError(f"{self.name}: neither 2D nor 3D poses")
        rows, joints = len(self._main_array), self.skeleton.num_joints
        if self._main_array.shape[1:2] != (joints,):
            raise DataError(
                f"{self.name}: poses have shape {self._main_array.shape}, but the skeleton "
                f"{self.skeleton.name} has {joints} joints"
            )
        for key, array in self.arrays.items():
            expected = (rows,) if key == "mm_per_unit" else (rows, joints, 3)
            if array.shape != expected:
                raise DataError(
                    f"{self.name}: {key} has shape {array.shape}, expected {expected} "
                    f"to fit poses_{'3d' if self.has_3d else '2d'}"
                )
        for recording in self.recordings:
            if not 0 <= recording.start < recording.stop <= rows:
                raise DataError(
                    f"{self.name}: recording {recording.subject_source!r} spans rows "
                    f"{recording.start}..{recording.stop - 1}, but the arrays have {rows} rows"
                )


def check_finite(
    array: np.ndarray, what: str, recordings: Sequence[Recording] = (), *, first_row: int = 0
) -> None:
    """Looks for NaN and infinity, a part at a time so that a memory-mapped array stays on disk.

    Args:
      array: (rows, ...) numbers.
      what: what the message calls it.
      recordings: says which recording a row belongs to.
      first_row: the row that array[0] is of the whole, where a part of it is checked.

    Raises:
      DataError: names `what`, the first offending index and the recording that it belongs to.
    """
    for first in range(0, len(array), _ROWS_PER_CHECK):
        with np.errstate(over="ignore"):
            # Clips are float32: what that cannot hold would turn up as infinity later.
            finite = np.isfinite(np.asarray(array[first : first + _ROWS_PER_CHECK], np.float32))
        if finite.all():
            continue
        index = np.argwhere(~finite)[0]
        index[0] += first + first_row
        inside = [r for r in recordings if r.start <= index[0] < r.stop]
        where = (
            f" (frame {index[0] - inside[0].start} of {inside[0].subject_source})" if inside else ""
        )
        raise DataError(
            f"{what} is {array[tuple(index)]} at index {tuple(index.tolist())}{where}; every value "
            "must be finite: repair or drop that recording"
        )
