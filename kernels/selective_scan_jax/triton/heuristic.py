"""How the Triton scan is cut into programs."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping

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


# Warps that a GPU of about 500 schedulers has work for, and so few that time is worth splitting:
# the pass that joins the segments costs nearly as much as the scan.
WANTED_WARPS, FEW_WARPS = 1024, 256


def heuristic(shape: Mapping[str, int]) -> Config:
    """Returns the configuration for a shape, after the latency model's figures (docs/triton.md).

    A program has as many states as its registers hold without spilling: 16 forward, 8 backward.
    Fewer would leave more programs, each of which repeats what is done once a step. Where programs
    are few, the length is split.

    Args:
      shape: batch, length, channels, directions, state and rank.
    """
    rows = shape["batch"] * shape["directions"] * -(-shape["channels"] // 32)

    def segments(states: int) -> int:
        warps = rows * -(-shape["state"] // states)
        longest = max(shape["length"] // (2 * Config.chunk), 1)
        return min(WANTED_WARPS // warps, longest) if warps <= FEW_WARPS else 1

    states, backward_states = MOST_STATES, BACKWARD_STATES
    return Config(
        states=states,
        segments=segments(states),
        backward_states=backward_states,
        backward_segments=segments(backward_states),
    )
