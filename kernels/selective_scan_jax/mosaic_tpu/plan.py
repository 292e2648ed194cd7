"""How the TPU kernels cut a scan into chunks: sizes, order of the steps, blocks of the arrays.

Both operators come down to one form. Activations are (batch, lines, frames, channels): a sequence
is one line, a grid has one line per joint. A chunk is what one visit of the kernel works on: all
lines of a few frames where the path goes frame by frame, many frames of one line otherwise. Its
rows are stored line by line, row = line * frame_block + frame, whatever the order of the steps.
Channels are in the lanes of a vector register and states in its sublanes.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl

LANES, SUBLANES = 128, 8

# Steps of the loop over time that are compiled into one iteration.
_MOST_UNROLLED_STEPS, _MOST_UNROLLED_TILES = 24, 20


@dataclasses.dataclass(frozen=True)
class TpuConfig:
    """Sizes that may be tuned.

    Attributes:
      chunk_steps: most steps per chunk of a cross scan, 8 to 1024. A chunk is made of whole frames
        of all lines, eight at least, or of up to 128 frames of one line.
      channel_block: channels per visit of the kernel, a multiple of 128; the largest such divisor
        of the number of channels that is not above it is used.
    """

    chunk_steps: int = 128
    channel_block: int = 256

    def __post_init__(self):
        if not 8 <= self.chunk_steps <= 1024:
            raise ValueError(f"chunk_steps: expected 8 to 1024, got {self.chunk_steps}")
        if self.channel_block < LANES or self.channel_block % LANES:
            raise ValueError(
                f"channel_block: expected a multiple of {LANES}, got {self.channel_block}"
            )

    def candidates(self, shape: Mapping[str, int]) -> list[TpuConfig]:
        """Configurations worth measuring at a shape."""
        blocks = range(LANES, min(512, max(LANES, shape["channels"])) + 1, LANES)
        steps = (64, 128, 256, 512) if "joints" in shape else (self.chunk_steps,)
        return [TpuConfig(t, block) for t in steps for block in blocks]


def heuristic(channels: int, states: int) -> TpuConfig:
    """Takes channel blocks of at most eight vector registers of state: more would not stay in them.

    Args:
      channels: per group that shares B and C.
      states: per channel.
    """
    registers = pl.cdiv(states, SUBLANES)
    block = max(1, min(pl.cdiv(channels, LANES), 8 // registers, 4))
    return TpuConfig(channel_block=LANES * block)


@dataclasses.dataclass(frozen=True)
class Plan:
    """One pass over one path. All sizes are those of the padded arrays but for `frames`.

    Attributes:
      batch, lines, channels, states: as in the module's text.
      frames: of the path; arrays may have up to 7 more (`padded_frames`).
      groups: of channels, each with its own B and C.
      direction: which of the sets of B and C is the first group's; a cross scan has one per
        direction.
      by_frame: lines vary fastest along the path.
      frames_reversed, lines_reversed: the sense of either axis along the path.
      frame_block, channel_block: of a chunk.
      unrolled: several steps per iteration of a loop. An interpreter only compiles them longer.
    """

    batch: int
    lines: int
    frames: int
    channels: int
    states: int
    groups: int
    direction: int
    by_frame: bool
    frames_reversed: bool
    lines_reversed: bool
    frame_block: int
    channel_block: int
    unrolled: bool = True

    @property
    def padded_frames(self) -> int:
        return pad_frames(self.frames)

    @property
    def line_block(self) -> int:
        return self.lines if self.by_frame else 1

    @property
    def rows(self) -> int:
        """Steps of a chunk, those behind the last frame included."""
        return self.line_block * self.frame_block

    @property
    def row_lanes(self) -> int:
        """Lanes of an array with the rows of a chunk in its lanes: whole vector registers."""
        return pl.cdiv(self.rows, LANES) * LANES

    @property
    def tiles(self) -> int:
        """Chunks along the frames."""
        return pl.cdiv(self.frames, self.frame_block)

    @property
    def chunks(self) -> int:
        return self.tiles * (self.lines // self.line_block)

    @property
    def channel_blocks(self) -> int:
        return self.channels // self.channel_block

    @property
    def blocks_per_group(self) -> int:
        return self.channel_blocks // self.groups

    @property
    def lane_groups(self) -> int:
        return self.channel_block // LANES

    @property
    def path(self) -> str:
        """The order of the steps in words; passes along the same path have the same loops."""
        if self.lines == 1:
            name = "sequence"
        else:
            name = "frame by frame" if self.by_frame else "joint by joint"
        return f"{name}, reversed" if self.frames_reversed else name

    def declared(self, kernel: str, *, projects: bool) -> dict[str, str]:
        """Tells what a pass does, as text that the compiled program keeps beside its kernel call.

        Who knows what a step costs can then time the program's kernels: `steps` counts all steps
        of all visits for one batch element, those behind the last frame included, and a step works
        on `channels` and `states`.

        Args:
          kernel: "forward" or "backward".
          projects: whether it computes the step projection, which `cross_scan` has.
        """
        return {
            "operator": "cross_scan" if projects else "selective_scan",
            "kernel": kernel,
            "path": self.path,
            "channels": str(self.channel_block),
            "states": str(self.states),
            "batch": str(self.batch),
            "steps": str(self.chunks * self.channel_blocks * self.rows),
        }

    def unroll(self, steps: int, most: int) -> int:
        """Decides how many of a loop's steps go into one iteration."""
        return largest_divisor(steps, most) if self.unrolled else 1

    def by_chunk(self, height: int):
        """Returns the shape of an array with a chunk's rows in its lanes."""
        line_chunks = self.lines // self.line_block
        return (self.batch, self.groups, line_chunks, self.tiles, height, self.row_lanes)

    def place(self, visit):
        """Finds the first line and the tile of the chunk that is visited at that time along the
        path.
        """
        line, tile = divide(visit, self.tiles)
        if self.lines_reversed and not self.by_frame:
            line = self.lines - 1 - line
        if self.frames_reversed:
            tile = self.tiles - 1 - tile
        return line, tile

    @property
    def steps_together(self) -> int:
        """Steps that are compiled into one iteration of the loop over time."""
        lines = self.unroll(self.line_block, _MOST_UNROLLED_STEPS)
        if lines < self.line_block:
            return lines
        return lines * self.unroll(self.frame_block, max(1, _MOST_UNROLLED_STEPS // lines))

    @property
    def iterations(self) -> int:
        return self.rows // self.steps_together

    def places(self, i, *, backwards: bool = False):
        """Lists line and frame, within the chunk, of the steps of an iteration in their order."""
        steps = self.steps_together
        lines = min(steps, self.line_block)
        frames, groups = steps // lines, self.line_block // lines
        first, group = (i * frames, 0) if groups == 1 else divide(i, groups)
        result = []
        for k in range(steps):
            frame, line = first + k // lines, group * lines + k % lines
            if self.frames_reversed != backwards:
                frame = self.frame_block - 1 - frame
            if self.by_frame and self.lines_reversed != backwards:
                line = self.lines - 1 - line
            result.append((line, frame))
        return result

    def for_tiles(self, body):
        """Runs body(row) for every eighth row of a chunk."""
        tiles = self.rows // SUBLANES
        unrolled = self.unroll(tiles, _MOST_UNROLLED_TILES)

        def some(i, _):
            for k in range(unrolled):
                body((i * unrolled + k) * SUBLANES)
            return 0

        lax.fori_loop(0, tiles // unrolled, some, 0)

    def valid(self, tile):
        """Tells which rows of a chunk lie on the path, (rows, 128), or None if all do in every
        chunk.
        """
        if self.frames % self.frame_block == 0:
            return None
        frame = lax.broadcasted_iota(jnp.int32, (self.line_block, self.frame_block, LANES), 1)
        return frame.reshape(self.rows, LANES) < self.frames - tile * self.frame_block

    def lane_of(self, line, frame):
        """Finds a step's register and lane in an array with the rows of a chunk in its lanes.

        The rows of a line never lie in two registers.
        """
        register, lane = divide(line * self.frame_block, LANES)
        return register, lane + frame

    @property
    def coefficients_at_once(self) -> int:
        """Coefficients whose three parts fit the lanes of a register; divides their number."""
        return 32 if 2 * self.states % 32 == 0 else 16

    def group_of(self, e):
        """Finds the group of channels that channel block e is part of."""
        return 0 if self.groups == 1 else divide(e, self.blocks_per_group)[0]

    def first_of_group(self, e):
        """Tells whether channel block e is the first of its group."""
        return divide(e, self.blocks_per_group)[1] == 0


class Blocks:
    """Block specifications of the arrays of a pass, visited in the path's order or against it."""

    def __init__(self, plan: Plan, *, backwards: bool = False):
        self.plan, self.backwards = plan, backwards

    def _visit(self, c):
        return self.plan.chunks - 1 - c if self.backwards else c

    def grid(self):
        return (self.plan.batch, self.plan.chunks, self.plan.channel_blocks)

    def rows(self):
        """Makes the block of arrays (batch, lines, frames, channels)."""
        p = self.plan
        shape = (1, p.line_block, p.frame_block, p.channel_block)
        return pl.BlockSpec(shape, lambda b, c, e: (b, *p.place(self._visit(c)), e))

    def narrow_rows(self, width: int):
        """Makes the block of arrays (batch, lines, frames, width)."""
        p = self.plan
        shape = (1, p.line_block, p.frame_block, width)
        return pl.BlockSpec(shape, lambda b, c, e: (b, *p.place(self._visit(c)), 0))

    def row_lanes(self, height: int):
        """Makes the block of arrays (batch, groups, lines / line_block, tiles, height, row_lanes),
        one per chunk, with its rows in the lanes.
        """
        p = self.plan
        return pl.BlockSpec(
            (None, None, None, None, height, p.row_lanes),
            lambda b, c, e: (b, p.group_of(e), *p.place(self._visit(c)), 0, 0),
        )

    def boundaries(self):
        """Makes the block of states at the start of each visit, (batch, chunks, states,
        channels).
        """
        p = self.plan
        shape = (1, 1, p.states, p.channel_block)
        return pl.BlockSpec(shape, lambda b, c, e: (b, self._visit(c), 0, e))

    def per_channel(self, height: int):
        """Makes the block of parameters (height, channels)."""
        return pl.BlockSpec((height, self.plan.channel_block), lambda b, c, e: (0, e))

    def operands(self, arrays: dict) -> dict:
        """Returns the block of every operand of the scan that a visit of either kernel reads, by
        name.
        """
        rows, one = self.rows(), self.per_channel(1)
        rank = arrays["weight"].shape[0] if "weight" in arrays else 0
        return {
            "x": rows,
            "raw": rows,
            "dt": self.row_lanes(rank),
            "weight": self.per_channel(rank),
            "bias": one,
            "A": self.per_channel(self.plan.states),
            "D": one,
            "coefficients": self.narrow_rows(arrays["coefficients"].shape[-1]),
            "z": rows,
        }

    def whole(self, height: int):
        """Makes the block of what a batch element keeps for all visits, (batch, height,
        channels).
        """
        return pl.BlockSpec((1, height, self.plan.channels), lambda b, c, e: (b, 0, 0))


def divide(x, by: int):
    """Computes quotient and remainder of a number or of a kernel's index, neither negative.

    For an index, // asks for its sign, which is lowered for the device at hand, not for the one
    that is compiled for.
    """
    if isinstance(x, int):
        return divmod(x, by)
    by = jnp.int32(by)
    return lax.div(x, by), lax.rem(x, by)


def largest_divisor(number: int, most: int) -> int:
    return next(d for d in range(min(number, most), 0, -1) if number % d == 0)


def pad_frames(frames: int) -> int:
    """Returns how many frames short arrays are padded to; longer ones are read as they are."""
    return -(-frames // SUBLANES) * SUBLANES if frames < LANES else frames


def frame_block(frames: int, lines: int, by_frame: bool, config: TpuConfig) -> int:
    """Chooses the frames per chunk: a power of two, or all frames of a short path.

    So the rows of a line do not straddle two registers where rows are in the lanes.
    """
    lines = lines if by_frame else 1
    most = min(config.chunk_steps // lines, LANES)
    padded = pad_frames(frames)
    if padded <= most and lines * padded <= LANES:
        return padded
    power = SUBLANES
    while 2 * power <= min(most, padded):
        power *= 2
    return power


def channel_block(channels: int, config: TpuConfig) -> int:
    """Returns the largest divisor of `channels` (per group, padded) that the configuration
    allows.
    """
    return LANES * largest_divisor(channels // LANES, config.channel_block // LANES)
