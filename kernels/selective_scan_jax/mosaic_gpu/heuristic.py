"""How the Mosaic GPU kernels cut a scan into programs."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator, Mapping

from selective_scan_jax.tuning import choose

CHANNELS = 128  # of a program: one per thread of a warpgroup
ROW_LENGTH = CHANNELS + 4  # floats from one row of terms to the next in shared memory
SHARED_MEMORY = 220 * 1024  # bytes that a program may use, of Hopper's 227 KiB

# The heuristic's longest segment, most steps at a time, and programs of a launch.
SEGMENT = 64
UNROLL = 8
PROGRAMS = 256


@dataclasses.dataclass(frozen=True)
class Config:
    """Block sizes of the kernels.

    Attributes:
      segment: steps between the states that the forward pass keeps for the backward pass.
      chunk: steps that the backward pass takes at a time; divides `segment`.
      unroll: steps whose inputs the forward pass loads at a time; divides `segment`.
      programs: how many programs a launch should have. If channels and batch make less than a
        quarter of it, time is cut into parts, and the states at the start of each part are found
        in a pass before.
    """

    segment: int
    chunk: int
    unroll: int
    programs: int

    def __post_init__(self):
        if self.segment % self.chunk or self.segment % self.unroll:
            raise ValueError(f"segment: expected a multiple of chunk and unroll, got {self}")

    def candidates(self, shape: Mapping[str, int]) -> Iterator[Config]:
        """Lists the configurations worth trying at a shape."""
        for chunk, factor, programs in itertools.product((1, 2, 3, 4, 8), (8, 16), (128, 256, 512)):
            for unroll in (chunk, 2 * chunk):
                config = Config(chunk * factor, chunk, unroll, programs)
                if shared_memory(config, shape["states"], shape["rank"]) <= SHARED_MEMORY:
                    yield config


def rows_of(config: Config, states: int, rank: int) -> int:
    """Counts a chunk's sums over channels: dB, dC and ddt of each step; at least one for each
    thread.
    """
    return max(CHANNELS, config.chunk * (2 * states + rank))


def shared_memory(config: Config, states: int, rank: int) -> int:
    """Counts the backward kernel's bytes: states of a segment and a chunk, rows of terms."""
    kept = config.segment // config.chunk + max(config.chunk - 1, 1)
    return 4 * (kept * states * CHANNELS + rows_of(config, states, rank) * ROW_LENGTH)


def choose_config(kernel: str, shape: Mapping[str, int]) -> Config:
    """Returns the table's sizes for a shape, or else the heuristic's.

    A chunk's rows are as many as threads can add up in one go, if that is a step at all, and a step
    fewer without a step projection, lest its values overflow the registers. Segments are as long as
    shared memory allows.

    Args:
      kernel: "mosaic_gpu_selective_scan" or "mosaic_gpu_cross_scan".
      shape: batch, length, channels, states, and rank (0 without a step projection).

    Raises:
      ValueError: there are so many states that no sizes fit.
    """
    states, rank = shape["states"], shape["rank"]
    chunk = min(UNROLL, max(1, CHANNELS // (2 * states + max(rank, 8))))
    unroll = UNROLL // chunk * chunk
    for segment, steps in ((i * n, n) for n in (unroll, chunk) for i in range(SEGMENT // n, 0, -1)):
        default = Config(segment, chunk, steps, PROGRAMS)
        if shared_memory(default, states, rank) <= SHARED_MEMORY:
            return choose(kernel, default, shape)
    raise ValueError(
        f"A: {states} states (with a step projection of rank {rank}) do not fit into the shared "
        "memory of the mosaic_gpu implementation; 'xla' takes any number"
    )
