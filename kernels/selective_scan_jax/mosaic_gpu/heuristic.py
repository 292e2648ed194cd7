"""How the Mosaic GPU kernels cut a scan into programs."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator, Mapping

from selective_scan_jax.gpu_latency import cycles_of, fewest_alike
from selective_scan_jax.tuning import choose

CHANNELS = 128  # of a program: one per thread of a warpgroup
ROW_LENGTH = CHANNELS + 4  # floats from one row of terms to the next in shared memory
SHARED_MEMORY = 220 * 1024  # bytes that a program may use, of Hopper's 227 KiB

# Modelled cycles that a scheduler takes for a step of each of its one or two warps, as many as the
# registers allow, or for one where shared memory allows no more: of the scan, and of the pass that
# finds where parts start (benchmarks/results/mosaic_gpu_static.md, cross_scan).
CYCLES = {False: ((217, 371), (189, 336)), True: ((928,), (215, 355))}
# Of numbers of parts that model alike the smallest is taken.
_ALIKE = 1.05

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
      programs: how many are enough for a launch: directions follow one another if each has as
        many, and no more parts of time are made than it takes.
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


def side_by_side(programs: int, config: Config) -> bool:
    """Tells whether directions of so many programs each run at the same time.

    Each then has an output of its own, and there are more programs. Where one direction has enough
    of them, directions follow one another instead and add to the same output.
    """
    return programs < config.programs


def parts_of(length: int, programs: int, config: Config, *, backward: bool = False) -> int:
    """Returns how many parts of time model fastest, each of at least one whole segment.

    A pass finds the states at the starts of the parts before, which costs nearly as much as the
    scan forward, a quarter of it backward.

    Args:
      length: steps.
      programs: of one part of time.
      config: block sizes.
      backward: for the backward pass, which starts at the parts' ends.
    """
    segments = -(-length // config.segment)
    times = {}
    for wanted in range(1, min(segments, max(1, -(-config.programs // programs))) + 1):
        per_part = -(-segments // wanted)
        parts = -(-segments // per_part)
        times[parts] = per_part * turn_cycles(programs * parts, parts, CYCLES[backward])
    return fewest_alike(times, _ALIKE)


def turn_cycles(programs: int, parts: int, cycles) -> float:
    """Returns the modelled cycles of a step of all programs, their passes taken together.

    Args:
      programs: a program has a warp for each scheduler of a multiprocessor.
      parts: of time; a single one needs no pass that finds where parts start.
      cycles: of the scan and of that pass, as `cycles_of` takes them.
    """
    scan, ends = cycles
    warps = 4 * programs
    return cycles_of(scan, warps) + (cycles_of(ends, warps) if parts > 1 else 0.0)


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
