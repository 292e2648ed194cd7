"""Several sources in one training run, each with its share of the clips.

A mixture's stream is, like that of one source, an endless sequence of positions whose content
follows from the seed and the position alone. Every epoch has the same number of positions. Each
source that takes part gets its share of an epoch's positions, exactly but for rounding, in random
places; and goes through all its clips in an order of its own before any comes again, across epochs.
"""

import dataclasses
import functools

import numpy as np

from posemamba_jax.data.clips import ClipSource, DataError, check_skeleton
from posemamba_jax.limits import LARGEST_COUNT, Section


@dataclasses.dataclass(frozen=True)
class MixtureConfig(Section, path="data.mixture"):
    """Which sources a mixture has; the lists go together, item by item.

    Attributes:
      sources: names of sources, as data.source has them; their options are theirs.
      weights: share of the training clips that each source gives, relative to each other. Empty:
        the numbers of their clips, so that all clips are shown equally often.
      join_epochs: epoch, from 0, from which each source takes part. Empty: 0 for all. Until a
        source joins, the others share its part.
      input_2d: "detected" or "ground_truth" for each source. Empty: data.input_2d for all.
      test: the source to evaluate on; the first of `sources` if empty.

    Raises:
      ValueError: the lists do not go together, or a value is out of its range.
    """

    sources: tuple[str, ...] = ()
    weights: tuple[float, ...] = ()
    join_epochs: tuple[int, ...] = ()
    input_2d: tuple[str, ...] = ()
    test: str = ""

    def problems(self):
        for name in ("weights", "join_epochs", "input_2d"):
            count = len(getattr(self, name))
            if count not in (0, len(self.sources)):
                wanted = f"for {len(self.sources)} sources; give one for each, or none"
                yield name, f"has {count} values {wanted}"
        if not all(0 < weight < 1e9 for weight in self.weights):
            yield "weights", f"{list(self.weights)}, expected numbers above 0 and below 1e9"
        if not all(0 <= epoch <= LARGEST_COUNT for epoch in self.join_epochs):
            yield "join_epochs", f"{list(self.join_epochs)}, expected 0..{LARGEST_COUNT}"
        if self.join_epochs and min(self.join_epochs) > 0:
            yield "join_epochs", "has no source that is there from epoch 0"
        unknown = set(self.input_2d) - {"detected", "ground_truth"}
        if unknown:
            yield "input_2d", f"has {sorted(unknown)}, expected detected or ground_truth"


class Mixture:
    """A clip source made of others; clip i of all is clip i of them laid end to end.

    Args:
      sources: with clips of the same length and skeleton.
      weights: one per source, or None for the numbers of their clips.
      join_epochs: one per source, or None for 0.

    Attributes:
      sources, name, clip_len, skeleton, fps: as in the contract; fps is the first source's.
      has_3d: whether all sources have 3D poses.
      has_padding: whether a source has recordings shorter than a clip.
      clips_per_epoch: positions in an epoch: as many as it takes for all of the first source's
        clips to come once when every source takes part.

    Raises:
      DataError: no sources, one without clips, or ones that do not fit each other.
    """

    def __init__(
        self,
        sources: list[ClipSource],
        weights: tuple[float, ...] | None = None,
        join_epochs: tuple[int, ...] | None = None,
    ):
        if not sources:
            raise DataError("data.mixture.sources is empty: name the sources to mix")
        for source in sources:
            if not len(source):
                raise DataError(f"{source.name}: there are no training clips")
            if source.clip_len != sources[0].clip_len:
                raise DataError(
                    f"{source.name} has clips of {source.clip_len} frames, but {sources[0].name} "
                    f"of {sources[0].clip_len}; they cannot be mixed"
                )
            check_skeleton(sources[0].skeleton, f"{sources[0].name}, in the same mixture,", source)
        self.sources = list(sources)
        self.name = "mixture of " + ", ".join(source.name for source in sources)
        self.clip_len = sources[0].clip_len
        self.skeleton = sources[0].skeleton
        self.fps = sources[0].fps
        self.has_3d = all(getattr(source, "has_3d", True) for source in sources)
        self.has_padding = any(getattr(source, "has_padding", False) for source in sources)
        self._sizes = np.array([len(source) for source in sources])
        self._weights = np.asarray(weights or self._sizes, np.float64)
        self._join_epochs = np.asarray(join_epochs or [0] * len(sources))
        if self._join_epochs.min() > 0:
            raise DataError("data.mixture.join_epochs has no source that is there from epoch 0")
        share = self._weights[0] / self._weights.sum()
        self.clips_per_epoch = max(1, round(self._sizes[0] / share))
        # An order is as long as its source; two of each are in use where a batch straddles them.
        self._order = functools.lru_cache(3 * len(sources))(self._make_order)
        self._slots = functools.lru_cache(4)(self._make_slots)
        self._taken_before = functools.lru_cache(4)(self._count_taken_before)

    @property
    def num_joints(self) -> int:
        """Number of joints of the skeleton."""
        return self.skeleton.num_joints

    def __len__(self) -> int:
        return int(self._sizes.sum())

    def __getitem__(self, i: int) -> dict:
        which, index = self._locate(range(len(self))[i])
        return self.sources[which][index]

    def draw(self, i: int, rng: np.random.Generator) -> dict:
        """Draws clip i where its source draws its training clips, else takes it."""
        which, index = self._locate(range(len(self))[i])
        source = self.sources[which]
        return source.draw(index, rng) if hasattr(source, "draw") else source[index]

    def source_of(self, i: int) -> ClipSource:
        """Finds the source that clip i is of."""
        return self.sources[self._locate(i)[0]]

    def identity(self) -> dict[str, list]:
        """Collects what must be the same for a position in the stream to mean the same."""
        return {
            "mixed_clips": self._sizes.tolist(),
            "weights": self._weights.tolist(),
            "join_epochs": self._join_epochs.tolist(),
        }

    def clip_at(self, position: int, seed: int) -> int:
        """Finds the clip, of all laid end to end, at a position of the stream with this seed."""
        epoch, slot = divmod(position, self.clips_per_epoch)
        sources, ranks = self._slots(epoch, seed)
        which = int(sources[slot])
        taken = self._taken_before(epoch)[which] + int(ranks[slot])
        round_, index = divmod(taken, int(self._sizes[which]))
        first = int(self._sizes[:which].sum())
        return first + int(self._order(which, round_, seed)[index])

    def _locate(self, i: int) -> tuple[int, int]:
        ends = np.cumsum(self._sizes)
        which = int(np.searchsorted(ends, i, side="right"))
        return which, int(i - (ends[which] - self._sizes[which]))

    def counts(self, epoch: int) -> np.ndarray:
        """Counts how many of an epoch's positions each source gets, (sources,).

        Largest remainders, so that they add up to clips_per_epoch.
        """
        weights = np.where(self._join_epochs <= epoch, self._weights, 0)
        exact = weights / weights.sum() * self.clips_per_epoch
        counts = np.floor(exact).astype(np.int64)
        missing = self.clips_per_epoch - counts.sum()
        counts[np.argsort(counts - exact, kind="stable")[:missing]] += 1
        return counts

    def _count_taken_before(self, epoch: int) -> list[int]:
        """Counts the positions that each source had in all earlier epochs."""
        changes = sorted({*self._join_epochs[self._join_epochs < epoch].tolist(), epoch})
        taken = np.zeros(len(self.sources), np.int64)
        for start, stop in zip(changes, changes[1:], strict=False):
            taken += (stop - start) * self.counts(start)
        return taken.tolist()

    def _make_slots(self, epoch: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
        """Finds each position's source, and the number of that source's positions before it."""
        counts = self.counts(epoch)
        sources = np.repeat(np.arange(len(counts)), counts)
        np.random.default_rng((seed, 0, epoch)).shuffle(sources)
        ranks = np.empty_like(sources)
        for which in range(len(counts)):
            mine = sources == which
            ranks[mine] = np.arange(mine.sum())
        return sources, ranks

    def _make_order(self, which: int, round_: int, seed: int) -> np.ndarray:
        """Draws the order of a source's clips the round_-th time it goes through them."""
        rng = np.random.default_rng((seed, 1 + which, round_))
        return rng.permutation(int(self._sizes[which]))
