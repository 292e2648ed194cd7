"""Batches for training: shuffled, mirrored at random, shared out between processes, resumable.

The stream is one endless sequence of positions. Positions 0..clips-1 are the first epoch, each clip
once in an order drawn from the seed; the next `clips` positions are the second epoch in another
order, and so on. Global batch b is positions b*batch_size .. (b+1)*batch_size - 1, whatever the
number of processes. So no clip is dropped and no batch is incomplete: where batch_size does not
divide the number of clips, a batch straddles the end of an epoch.

Order, mirroring, noise and masks follow from the seed and the position alone. All there is to save
is the number of batches taken, and a resumed stream equals an uninterrupted one bit for bit.

Of a mixture of sources, an epoch is `clips_per_epoch` positions, shared out as the mixture says.
"""

import functools
from collections.abc import Callable, Iterator
from typing import Any

import grain
import numpy as np

from posemamba_jax.data.augment import AugmentConfig, augment_2d
from posemamba_jax.data.clips import ClipSource, DataError
from posemamba_jax.data.mixture import Mixture
from posemamba_jax.skeleton import Skeleton

# Positions in a stream: more than any run takes.
_ENDLESS = 1 << 48
# Sets the draws of a mixture's augmentation apart from those of its order.
_AUGMENTATION = 1 << 30


def steps_per_epoch(source: ClipSource, batch_size: int) -> int:
    """Counts the batches that hold every clip of an epoch at least once (the last straddles its
    end).
    """
    return -(-getattr(source, "clips_per_epoch", len(source)) // batch_size)


def batch_keys(source: ClipSource) -> tuple[str, ...]:
    """Lists what the batches of a source hold; see `train_batches`."""
    keys = ("poses_2d", "poses_3d")
    if not getattr(source, "has_3d", True):
        keys += ("has_3d", "weights_2d")
    return (*keys, "frame_mask") if getattr(source, "has_padding", False) else keys


def train_batches(
    source: ClipSource,
    *,
    batch_size: int,
    seed: int,
    flip_probability: float = 0.5,
    augmentation: AugmentConfig | None = None,
    process_index: int = 0,
    process_count: int = 1,
    num_threads: int = 2,
    prefetch: int = 16,
) -> "TrainBatches":
    """Makes an endless stream of training batches.

    Args:
      source: where the clips come from; only the clips of this process's share are read.
      batch_size: clips in a global batch, over all processes.
      seed: of the order and of the mirroring.
      flip_probability: how often a clip's input and target are mirrored, together.
      augmentation: noise and masks on the input; None for none.
      process_index: which of the process_count equal stretches of a batch this process gets; the
        shares laid end to end are the batch.
      process_count: how many processes share a batch.
      num_threads: threads that read ahead; 0 reads in the caller's thread.
      prefetch: clips that are read ahead.

    Returns:
      An iterator over {"poses_2d": (batch, frames, joints, 3), "poses_3d": the same} float32, where
      batch = batch_size / process_count. Where the source, or one of a mixture, has 2D poses only,
      also "has_3d" (batch,) bool, and "weights_2d" (batch, frames, joints) float32: how much the
      x, y of each joint of poses_3d count in clips without 3D, 0 in others. poses_3d then holds
      the 2D pose before noise and masks, and zeros for depth. Where recordings are padded, also
      "frame_mask" (batch, frames) bool, False where a frame only pads.

    Raises:
      DataError: the source is empty.
      ValueError: batch_size is not a positive multiple of process_count, or another number is out
        of its range.
    """
    if batch_size < 1 or process_count < 1 or batch_size % process_count:
        raise ValueError(
            f"batch_size {batch_size} is not a positive multiple of the {process_count} processes"
        )
    if not 0 <= process_index < process_count:
        raise ValueError(f"process_index {process_index} is not in 0..{process_count - 1}")
    if not 0 <= flip_probability <= 1:
        raise ValueError(f"flip_probability {flip_probability} is not in 0..1")
    if len(source) == 0:
        raise DataError(f"{source.name}: there are no training clips")

    augmentation = augmentation or AugmentConfig()
    prepare = functools.partial(
        _prepare,
        flip_probability=flip_probability,
        augmentation=augmentation,
        skeleton=source.skeleton,
        keys=batch_keys(source),
    )
    identity = {"clips": len(source), "batch_size": batch_size, "seed": seed}
    if isinstance(source, Mixture):
        identity.update(source.identity())

        def read(position: int):
            rng = np.random.default_rng((seed, _AUGMENTATION, position))
            i = source.clip_at(position, seed)
            return prepare(_draw(source, i, rng), rng, exact=_is_exact(source.source_of(i)))

        clips = grain.MapDataset.range(_ENDLESS).map(read)
    else:
        prepare = functools.partial(prepare, exact=_is_exact(source))

        def read_clip(i: int, rng: np.random.Generator):
            return prepare(_draw(source, i, rng), rng)

        # The seed of a position in a later epoch is another one: so are its draws.
        clips = grain.MapDataset.range(len(source)).seed(seed).shuffle().random_map(read_clip)
        clips = clips.repeat()
    options = grain.ReadOptions(
        num_threads=num_threads, prefetch_buffer_size=prefetch if num_threads else 0
    )

    size = batch_size // process_count

    def open_at(batch: int) -> grain.DatasetIterator:
        def clip(i: int):
            return clips[(batch + i // size) * batch_size + process_index * size + i % size]

        share = grain.MapDataset.range(_ENDLESS).map(clip)
        return iter(share.to_iter_dataset(options).batch(size))

    return TrainBatches(open_at, identity)


def _draw(source: ClipSource, i: int, rng: np.random.Generator) -> dict:
    """Draws clip i for its position in the stream where the source can, else takes it as it always
    is.
    """
    return source.draw(i, rng) if hasattr(source, "draw") else source[i]


def _is_exact(source: ClipSource) -> bool:
    return getattr(source, "input_2d", "detected") == "ground_truth"


def _prepare(
    clip: dict,
    rng: np.random.Generator,
    *,
    exact: bool,
    flip_probability: float,
    augmentation: AugmentConfig,
    skeleton: Skeleton,
    keys: tuple[str, ...],
) -> dict[str, np.ndarray]:
    """Takes of a clip what the training step needs, mirrored and augmented."""
    poses = {key: clip[key] for key in ("poses_2d", "poses_3d") if key in clip}
    if rng.random() < flip_probability:
        poses = {key: skeleton.flip(array) for key, array in poses.items()}
    if "frame_mask" in keys:
        frames = len(poses["poses_2d"])
        poses["frame_mask"] = np.asarray(clip.get("frame_mask", np.ones(frames, bool)))
    if "has_3d" in keys:
        poses = _add_flags(poses, skeleton.root)
    if augmentation.changes_anything:
        poses["poses_2d"] = augment_2d(poses["poses_2d"], augmentation, rng, exact=exact)
    return poses


def _add_flags(poses: dict[str, np.ndarray], root: int) -> dict[str, Any]:
    """Makes clips with and without 3D poses alike."""
    pose, confidence = poses["poses_2d"], poses["poses_2d"][..., 2]
    if "poses_3d" in poses:
        return {**poses, "has_3d": np.True_, "weights_2d": np.zeros_like(confidence)}
    target = pose.copy()
    target[..., 2] = 0
    # Targets are relative to the root: without it there is nothing to compare with.
    weights = confidence * (confidence[:, root : root + 1] > 0)
    return {**poses, "poses_3d": target, "has_3d": np.False_, "weights_2d": weights}


class TrainBatches:
    """An iterator over training batches whose position can be saved and restored.

    Args:
      open_at: gives an iterator that starts at a global batch's number.
      identity: what must be the same for a saved position to mean the same.
    """

    def __init__(self, open_at: Callable[[int], Iterator[dict]], identity: dict[str, Any]):
        self._open_at = open_at
        self._identity = identity
        self._taken = 0
        self._iterator = open_at(0)

    def __iter__(self):
        return self

    def __next__(self) -> dict[str, np.ndarray]:
        batch = next(self._iterator)
        self._taken += 1
        return batch

    def get_state(self) -> dict[str, Any]:
        """Returns the position in the stream; it holds for any number of processes."""
        return {**self._identity, "batches_taken": self._taken}

    def set_state(self, state: dict[str, Any]) -> None:
        """Goes to a position that `get_state` returned.

        Raises:
          DataError: the state belongs to a stream with other clips, batch size or seed, which this
            one could not continue.
        """
        for key, value in self._identity.items():
            if state.get(key) != value:
                raise DataError(
                    f"the saved input position has {key} {state.get(key)}, but this run has "
                    f"{value}; continue with the same data, batch size and seed"
                )
        self._taken = int(state["batches_taken"])
        self._iterator = self._open_at(self._taken)
