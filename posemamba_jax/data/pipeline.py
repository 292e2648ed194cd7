"""Batches for training: shuffled, mirrored at random, shared out between processes, resumable.

The stream is one endless sequence of positions. Positions 0..clips-1 are the first epoch, each clip
once in an order drawn from the seed; the next `clips` positions are the second epoch in another
order, and so on. Global batch b is positions b*batch_size .. (b+1)*batch_size - 1, whatever the
number of processes. So no clip is dropped and no batch is incomplete: where batch_size does not
divide the number of clips, a batch straddles the end of an epoch.

Order and mirroring follow from the seed and the position alone. All there is to save is the number
of batches taken, and a resumed stream equals an uninterrupted one bit for bit.
"""

from collections.abc import Callable, Iterator

import grain
import numpy as np

from posemamba_jax.data.clips import ClipSource, DataError
from posemamba_jax.skeleton import H36M17, Skeleton


def steps_per_epoch(source: ClipSource, batch_size: int) -> int:
    """Batches that hold every clip at least once (the last straddles the epoch's end)."""
    return -(-len(source) // batch_size)


def train_batches(
    source: ClipSource,
    *,
    batch_size: int,
    seed: int,
    flip_probability: float = 0.5,
    process_index: int = 0,
    process_count: int = 1,
    num_threads: int = 2,
    prefetch: int = 16,
    skeleton: Skeleton = H36M17,
) -> "TrainBatches":
    """An endless stream of training batches.

    Args:
      source: where the clips come from; only the clips of this process's share are read.
      batch_size: clips in a global batch, over all processes.
      seed: of the order and of the mirroring.
      flip_probability: how often a clip's input and target are mirrored, together.
      process_index, process_count: this process's share is every process_count-th position.
      num_threads: threads that read ahead; 0 reads in the caller's thread.
      prefetch: clips that are read ahead.
      skeleton: says which joints trade places in a mirror.

    Returns:
      An iterator over {"poses_2d": (batch, frames, joints, 3), "poses_3d": the same} float32, where
      batch = batch_size / process_count.

    Raises:
      DataError: the source is empty, or its joints are not the skeleton's where it is mirrored.
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
    if flip_probability and source.num_joints != skeleton.num_joints:
        raise DataError(
            f"{source.name} has {source.num_joints} joints and cannot be mirrored as "
            f"{skeleton.name}; set flip_probability to 0"
        )

    def augment(clip, rng: np.random.Generator):
        poses = {key: clip[key] for key in ("poses_2d", "poses_3d")}
        if rng.random() < flip_probability:
            poses = {key: skeleton.flip(array) for key, array in poses.items()}
        return poses

    clips = grain.MapDataset.source(source).seed(seed).shuffle().random_map(augment).repeat()
    options = grain.ReadOptions(
        num_threads=num_threads, prefetch_buffer_size=prefetch if num_threads else 0
    )

    def open_at(batch: int) -> grain.DatasetIterator:
        share = clips.slice(slice(batch * batch_size + process_index, None, process_count))
        return iter(share.to_iter_dataset(options).batch(batch_size // process_count))

    identity = {"clips": len(source), "batch_size": batch_size, "seed": seed}
    return TrainBatches(open_at, identity)


class TrainBatches:
    """An iterator over training batches whose position can be saved and restored.

    Args:
      open_at: gives an iterator that starts at a global batch's number.
      identity: what must be the same for a saved position to mean the same.
    """

    def __init__(self, open_at: Callable[[int], Iterator[dict]], identity: dict[str, int]):
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

    def get_state(self) -> dict[str, int]:
        """The position in the stream; it holds for any number of processes."""
        return {**self._identity, "batches_taken": self._taken}

    def set_state(self, state: dict[str, int]) -> None:
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
