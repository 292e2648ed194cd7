"""How the Mosaic GPU kernels cut a scan into programs."""

from __future__ import annotations

import dataclasses

CHANNELS = 128  # of a program: one per thread of a warpgroup
SHARED_MEMORY = 227 * 1024  # bytes that a block may use on Hopper


@dataclasses.dataclass(frozen=True)
class Config:
    """Block sizes of the kernels.

    Attributes:
      segment: steps between the states that the forward pass keeps for the backward pass.
      chunk: steps whose states the backward pass holds in shared memory at a time; divides
        `segment`.
      unroll: steps whose inputs the forward pass loads at a time; divides `segment`.
      programs: how many programs a launch should have at least, where the length allows it. Time
        is cut into as many parts as that takes, and the states at the start of each part are
        found in a pass before.
    """

    segment: int
    chunk: int
    unroll: int
    programs: int


def default_config(states: int) -> Config:
    """Sizes for a state size, the same for every length and batch.

    A program of the backward pass holds (segment / chunk + chunk + 1) states of 128 channels in
    shared memory; about 100 KiB of it leave room for two programs on a multiprocessor.
    """
    for segment, chunk in ((64, 8), (32, 4), (16, 4), (8, 2)):
        if (segment // chunk + chunk + 1) * states * CHANNELS * 4 <= SHARED_MEMORY // 2:
            return Config(segment, chunk, min(8, segment), 256)
    return Config(4, 2, 4, 256)
