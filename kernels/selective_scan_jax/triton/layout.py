"""What is fixed when a Triton kernel is compiled: sizes, options, and how the work is cut up.

Letters of the shapes here and in the kernels: b batch, l positions, k directions (or groups of
channels), e channels of each, n states, r rank of the step projection; s segments of the length,
p parts of the states, c blocks of channels.
"""

from __future__ import annotations

import dataclasses
import math

from selective_scan_jax.order import Strides


@dataclasses.dataclass(frozen=True)
class Layout:
    """Sizes and options of one launch; kernels read its attributes as constants.

    A program takes `lanes * per_thread` channels of one batch element, direction, part of the
    states and segment of the length.

    Attributes:
      length: positions.
      channels: of each direction or group.
      directions: of a cross scan, or groups of a selective scan.
      states: per channel.
      rank: of the step projection; 0 for a selective scan, whose step sizes are an operand.
      softplus: whether step sizes pass through it.
      bias, skip, initial, grad_last: whether there is a bias of the step sizes, a D, a first state,
        a gradient by the last state.
      save: whether the forward pass keeps the states before every chunk.
      chunk: steps between those states, a multiple of `group`.
      group: steps whose operands are in flight at a time.
      block_n: states of a program.
      segments, segment: how many pieces the length is cut into, and steps of each, a multiple of
        `chunk`.
      lanes: threads of a program.
      per_thread: channels of a thread.
    """

    length: int
    channels: int
    directions: int
    states: int
    rank: int
    softplus: bool
    bias: bool
    skip: bool
    initial: bool
    grad_last: bool
    save: bool
    chunk: int
    group: int
    block_n: int
    segments: int
    segment: int
    lanes: int
    per_thread: int

    @property
    def cross(self) -> bool:
        return self.rank > 0

    @property
    def width(self) -> int:
        """Channels of a program."""
        return self.lanes * self.per_thread

    @property
    def blocks(self) -> int:
        return -(-self.channels // self.width)

    @property
    def whole_blocks(self) -> bool:
        """Whether no program has a channel too many."""
        return self.channels % self.width == 0

    @property
    def parts(self) -> int:
        return self.states // self.block_n

    @property
    def chunks(self) -> int:
        return -(-self.length // self.chunk)

    @property
    def whole_groups(self) -> bool:
        """Whether every segment is a whole number of groups."""
        return self.length % self.group == 0

    @property
    def u_row(self) -> int:
        """Numbers from one position of u to the next."""
        return self.channels if self.cross else self.directions * self.channels

    @property
    def row(self) -> int:
        """Numbers of a row of dt, B and C of one position and direction."""
        return self.rank + 2 * self.states

    @property
    def rank_width(self) -> int:
        """Numbers of dt a load."""
        return math.gcd(self.rank, self.row, 4)

    @property
    def state_width(self) -> int:
        """Numbers of B or C a load."""
        return math.gcd(self.block_n, self.states, self.rank, self.row, 4)

    @property
    def sums_pad(self) -> int:
        """The next power of two from the sums over channels of a step, those by B and by C."""
        return 1 << (2 * self.block_n - 1).bit_length()

    @property
    def rank_pad(self) -> int:
        return 1 << max(self.rank - 1, 0).bit_length()

    @property
    def starts(self) -> int:
        """Groups of a chunk, whose first states the backward pass puts into its scratch."""
        return self.chunk // self.group

    @property
    def programs_per_element(self) -> int:
        return self.segments * self.parts * self.directions * self.blocks


def path_of(strides: Strides, limbs: bool) -> list[int]:
    """Returns a row of the kernels' `paths`.

    The position of the first step, the stride and the length of the path's inner axis, the stride
    from the end of one inner axis to the start of the next, and whether the scan's input has the
    limb term.
    """
    start, inner, stride, outer_stride = strides
    return [start, stride, inner, outer_stride - (inner - 1) * stride, int(limbs)]
