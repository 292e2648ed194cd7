"""How the Triton scan is cut into programs."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence

from selective_scan_jax import gpu_latency as latency

# States of a program: their vectors have to fit into the registers.
MOST_STATES, BACKWARD_STATES = 16, 8


@dataclasses.dataclass(frozen=True)
class Config:
    """How the scan is cut into programs.

    Attributes:
      chunk: steps between the states that the forward pass keeps; rounded up to whole groups.
      warps, channels, states: of a program of the forward kernel: warps, channels a thread, states.
      group: steps whose operands the forward kernel has in flight.
      segments: pieces that the forward kernel cuts the length into, joined in two passes.
      backward_warps, backward_channels, backward_states, backward_group, backward_segments: of the
        backward kernel.
    """

    chunk: int = 48
    warps: int = 1
    channels: int = 1
    states: int = MOST_STATES
    group: int = 3
    segments: int = 1
    backward_warps: int = 1
    backward_channels: int = 1
    backward_states: int = BACKWARD_STATES
    backward_group: int = 3
    backward_segments: int = 1

    @property
    def whole_chunk(self) -> int:
        """The chunk, rounded up to whole groups of both passes."""
        groups = math.lcm(self.group, self.backward_group)
        return -(-self.chunk // groups) * groups

    def candidates(self, shape: Mapping[str, int]) -> list[Config]:
        """Configurations worth measuring at a shape, one field after the other changed."""
        choices = {
            "chunk": (24, 48, 96),
            "warps": (1, 2, 4),
            "channels": (1, 2),
            "states": (4, 8, 16),
            "group": (1, 2, 3, 4, 6),
            "segments": (1, 2, 4, 8, 16, 32, 64),
        }
        changed = []
        for name, values in choices.items():
            for prefix in ("",) if name == "chunk" else ("", "backward_"):
                changed += [dataclasses.replace(self, **{prefix + name: v}) for v in values]
        return [config for config in dict.fromkeys(changed) if config != self]


# Modelled cycles that a scheduler takes for a step of each of its 1, 2, ... warps, as many as the
# registers allow: of the scan, and of the pass that finds where segments end
# (benchmarks/results/gpu_static.md, 16 states of a program forward and 8 backward, 256 channels).
_CROSS = {
    "forward": ((304, 420), (288, 439, 463, 576)),
    "backward": ((641, 885), (192, 230, 280, 347, 425)),
}
_SELECTIVE = {
    "forward": ((301, 427, 475), (269, 401, 431, 560)),
    "backward": ((553, 722, 901), (187, 241, 253, 309, 379, 436, 502, 570)),
}
_SEGMENTS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48)
# Of segmentations that model alike the one with the fewest is taken.
_ALIKE = 1.03


def split_cycles(
    scan: Sequence[float],
    ends: Sequence[float],
    *,
    length: int,
    steps: int,
    warps: int,
    states: int,
) -> float:
    """Returns the cycles of a scan whose length is cut into segments that are joined in two passes.

    Args:
      scan, ends: a step of the scan, and of the pass that finds where segments end, as
        `gpu_latency.cycles_of` takes them.
      length: of the scan.
      steps: of a segment.
      warps: of one segment.
      states: of a program.
    """
    segments = -(-length // steps)
    cycles = steps * latency.cycles_of(scan, warps * segments)
    if segments > 1:
        cycles += steps * latency.cycles_of(ends, warps * (segments - 1))
        # Every segment's program walks through the ends before it.
        turn = latency.L2 + latency.SPECIAL_BUSY * states + 3 * latency.SPECIAL
        cycles += (segments - 1) * turn
    return cycles


def heuristic(shape: Mapping[str, int]) -> Config:
    """Returns the configuration for a shape, after the latency model's figures (docs/triton.md).

    A program has as many states as its registers hold without spilling: 16 forward, 8 backward.
    Fewer would leave more programs, each of which repeats what is done once a step. Where programs
    are few, the length is split into as many segments as model fastest on an H100.

    Args:
      shape: batch, length, channels, directions, state and rank (0: a `selective_scan`).
    """
    steps = _CROSS if shape["rank"] else _SELECTIVE
    rows = shape["batch"] * shape["directions"] * -(-shape["channels"] // 32)

    def segments(name: str, states: int) -> int:
        warps = rows * -(-shape["state"] // states)
        scan, ends = steps[name]
        length, times = shape["length"], {}
        for count in _SEGMENTS:
            chunks = -(-length // (count * Config.chunk))
            if count == 1 or chunks > 1:
                times[count] = split_cycles(
                    scan, ends, length=length, steps=chunks * Config.chunk, warps=warps,
                    states=states,
                )  # fmt: skip
        return latency.fewest_alike(times, _ALIKE)

    return Config(
        states=MOST_STATES,
        segments=segments("forward", MOST_STATES),
        backward_states=BACKWARD_STATES,
        backward_segments=segments("backward", BACKWARD_STATES),
    )
