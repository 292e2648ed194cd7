"""Lifting clips of any length: overlapping windows of the model's length, blended.

T frames of the clip, F = `window` frames of the model, B windows in a batch, J joints.
"""

import math
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import jax
import numpy as np

from posemamba_jax.data.motion.keypoint_errors import LEAST_CONFIDENCE
from posemamba_jax.errors import UserError
from posemamba_jax.model.forward import Predict, make_predict
from posemamba_jax.skeleton import H36M17, Skeleton

__all__ = [
    "LoadedModel",
    "Predict",
    "PredictionError",
    "count_windows",
    "default_batch_size",
    "lift",
    "make_predict",
    "normalise",
]


class LoadedModel(NamedTuple):
    """A model to lift with.

    Attributes:
      predict: the forward pass, compiled when it is first called.
      window: frames that it takes.
      skeleton: what its joints are.
      fps: frames per second of the clips it was trained on; None where it is not known.
      confidence: whether it takes the confidence of each keypoint too.
    """

    predict: Predict
    window: int
    skeleton: Skeleton = H36M17
    fps: float | None = None
    confidence: bool = False

    @property
    def channels(self) -> int:
        """Channels of a keypoint that the model takes."""
        return 2 + self.confidence

    def prepare(
        self, pixels: np.ndarray, confidence: np.ndarray, image_size: tuple[int, int]
    ) -> np.ndarray:
        """Makes of keypoints what the model takes.

        Args:
          pixels: (..., J, 2).
          confidence: (..., J) in the detector's terms, where 1 is certain; 0 or NaN for keypoints
            that were interpolated.
          image_size: (width, height) in pixels.

        Returns:
          (..., J, 2 or 3) float32, normalised, with confidences in the range that training has.
        """
        poses_2d = normalise(pixels, image_size)
        if not self.confidence:
            return poses_2d
        bounded = np.clip(np.nan_to_num(confidence), LEAST_CONFIDENCE, 1)
        return np.concatenate([poses_2d, bounded[..., None]], axis=-1).astype(np.float32)


class PredictionError(UserError, ValueError):
    """A model gave what cannot be a pose."""


def normalise(pixels: np.ndarray, image_size: tuple[int, int]) -> np.ndarray:
    """Turns pixels (..., 2) into the model's coordinates: x in [-1, 1], y scaled alike, 0 in the
    centre.
    """
    width, height = image_size
    return (pixels * (2 / width) - np.array([1, height / width])).astype(np.float32)


def window_starts(num_frames: int, window: int, overlap: int) -> np.ndarray:
    """Finds the first frame of each window: the fewest windows that overlap by `overlap` or more.

    They are spread evenly, the first at the clip's start, the last ending with the clip.

    Raises:
      ValueError: the overlap leaves no frame of progress.
    """
    if not 0 <= overlap < window:
        raise ValueError(f"overlap is {overlap}; expected 0 to {window - 1} for {window} frames")
    if num_frames <= window:
        return np.zeros(1, int)
    span = num_frames - window
    count = math.ceil(span / (window - overlap)) + 1
    return np.rint(np.linspace(0, span, count)).astype(int)


def blend_weights(window: int, before: int, after: int) -> np.ndarray:
    """Weighs the frames of a window: 1, falling to almost 0 over those shared with neighbours.

    The fade is the polynomial of degree 5 whose first two derivatives vanish at both ends, so that
    it adds no acceleration where a window begins or ends; a squared sine adds most of it there.

    Args:
      window: frames in the window.
      before: frames shared with the window before it; 0 where there is none.
      after: frames shared with the window after it; 0 where there is none.

    Returns:
      (window,) float64.
    """

    def fade(length):
        t = (np.arange(length) + 0.5) / max(length, 1)
        return t**3 * (10 - 15 * t + 6 * t**2)

    weights = np.ones(window)
    weights[:before] *= fade(before)
    weights[window - after :] *= fade(after)[::-1]
    return weights


def lift(
    predict: Predict,
    poses_2d: np.ndarray,
    window: int,
    *,
    overlap: int | None = None,
    batch_size: int = 1,
    flip: bool = True,
    skeleton: Skeleton = H36M17,
    on_progress: Callable[[int], None] | None = None,
) -> np.ndarray:
    """Lifts one clip.

    Windows are cut out of the clip, lifted in batches, made root-relative and averaged where they
    overlap, with weights that fade in and out so that no window begins or ends abruptly. A clip
    shorter than the window is extended on both sides by repeating its first and last frame. Batches
    always have `batch_size` windows (the last is filled up), so one shape is compiled, and a
    window's result does not depend on its neighbours in the batch.

    Args:
      predict: the model.
      poses_2d: (T, J, 2) normalised and finite, or (T, J, 3) with confidences, for a model that
        takes them.
      window: F, the frames that the model takes.
      overlap: least number of frames that neighbouring windows share; None takes a third of F.
      batch_size: windows per call of the model.
      flip: average with the flipped-back prediction of the flipped input.
      skeleton: joints, for the flip and the root.
      on_progress: called with the number of windows done since the last call.

    Returns:
      (T, J, 3) float32, relative to the root, in the model's units.

    Raises:
      ValueError: the clip is empty or not finite.
      PredictionError: the prediction is not finite.
    """
    poses_2d = np.asarray(poses_2d, np.float32)
    if poses_2d.ndim != 3 or not len(poses_2d) or not np.isfinite(poses_2d).all():
        raise ValueError(
            f"expected finite keypoints (frames, joints, 2), got shape {list(poses_2d.shape)}"
        )
    total = len(poses_2d)
    overlap = window // 3 if overlap is None else overlap
    before = max(window - total, 0) // 2
    after = max(window - total, 0) - before
    padded = np.pad(poses_2d, ((before, after), (0, 0), (0, 0)), mode="edge")

    starts = window_starts(len(padded), window, overlap)
    blended = np.zeros((*padded.shape[:2], 3))
    weight = np.zeros((len(padded), 1, 1))
    shared = [0, *(window - np.diff(starts)), 0]
    index = 0
    batches = _batches(padded, starts, window, batch_size)
    for lifted in _lift_batches(predict, batches, flip, skeleton):
        lifted = lifted[: len(starts) - index]
        for one in lifted:
            start = starts[index]
            ramp = blend_weights(window, shared[index], shared[index + 1])
            blended[start : start + window] += ramp[:, None, None] * one
            weight[start : start + window, 0, 0] += ramp
            index += 1
        if on_progress:
            on_progress(len(lifted))
    result = (blended / weight)[before : before + total].astype(np.float32)
    if not np.isfinite(result).all():
        raise PredictionError("the model's prediction is not finite; is the checkpoint damaged?")
    return result


def count_windows(num_frames: int, window: int, overlap: int | None = None) -> int:
    """Counts the windows that `lift` uses."""
    return len(window_starts(num_frames, window, window // 3 if overlap is None else overlap))


def default_batch_size(window: int) -> int:
    """Returns how many windows to lift at once: on a CPU one of 243 frames, or as many shorter ones
    as have these frames together, elsewhere eight times that.
    """
    return max(1, (243 if jax.default_backend() == "cpu" else 8 * 243) // window)


def _batches(poses, starts, window: int, batch_size: int) -> Iterator[np.ndarray]:
    """Makes (batch_size, window, J, 2) arrays; the last one is filled up with its first window."""
    for i in range(0, len(starts), batch_size):
        chosen = list(starts[i : i + batch_size])
        chosen += [chosen[0]] * (batch_size - len(chosen))
        yield np.stack([poses[s : s + window] for s in chosen])


def _lift_batches(
    predict: Predict, batches: Iterator[np.ndarray], flip: bool, skeleton: Skeleton
) -> Iterator[np.ndarray]:
    """Yields the root-relative poses of each batch, in order.

    On a CPU two batches are under way at once, since the parts of a forward pass that one core does
    alone then leave none idle.
    """

    def lift_batch(batch: np.ndarray) -> np.ndarray:
        lifted = skeleton.average_flipped(call, batch) if flip else call(batch)
        return lifted - lifted[..., skeleton.root : skeleton.root + 1, :]

    def call(poses_2d: np.ndarray) -> np.ndarray:
        return np.asarray(predict(np.ascontiguousarray(poses_2d)), np.float64)

    # The first call compiles; two at once would both do it.
    yield lift_batch(next(batches))
    if jax.default_backend() != "cpu":
        yield from map(lift_batch, batches)
        return
    pool = ThreadPoolExecutor(2)
    try:
        yield from pool.map(lift_batch, batches)
    finally:
        pool.shutdown(cancel_futures=True)
