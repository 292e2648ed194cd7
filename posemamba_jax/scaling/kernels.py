"""Times the scan's kernels by the bundles of instructions that a TPU core issues for them.

A core issues one bundle a cycle, in the order that the compiler has put them. Kernels are compiled
apart from the program that calls them, so how many bundles a step takes is counted beforehand, by
`benchmarks/tpu_static.py`, and copied to `scan_bundles.json` by `benchmarks/scan_bundles.py`: rows
by chip, operator, kernel, path, channels of a visit and states. A kernel call in a compiled program
says of itself which row is its own and how many steps it takes.
"""

import dataclasses
import functools
import importlib.metadata
import json
import math
import re
from collections.abc import Sequence
from importlib import resources

from posemamba_jax.scaling.chips import Chip, Topology
from posemamba_jax.scaling.counting import is_kernel, memory_bytes
from posemamba_jax.scaling.hlo import Program

TABLE = "scan_bundles.json"
# A vector register holds this many states of this many channels.
_STATES, _CHANNELS = 8, 128
# What a step's cost depends on, beside the chip.
_CLASS = ("operator", "kernel", "path", "channels", "states")


@dataclasses.dataclass(frozen=True)
class Kernel:
    """This describes the calls of one kernel in a program.

    Attributes:
      operator: "cross_scan" or "selective_scan".
      kernel: "forward" or "backward".
      path: order of the steps, such as "frame by frame, reversed".
      channels: that a visit of the kernel works on.
      states: per channel.
      batch: batch elements of a call.
      steps: of all visits for one batch element.
      times: calls in a training step.
      bytes: read from and written to main memory by one call.
    """

    operator: str
    kernel: str
    path: str
    channels: int
    states: int
    batch: int
    steps: int
    times: int
    bytes: int

    @property
    def registers(self) -> int:
        """Vector registers of state that a step works on."""
        return math.ceil(self.channels / _CHANNELS) * math.ceil(self.states / _STATES)

    @property
    def name(self) -> str:
        return (
            f"{self.operator} {self.kernel}, {self.path}, {self.channels} channels of "
            f"{self.states} states"
        )


def find_kernels(program: Program) -> list[Kernel]:
    """Lists the kernel calls that say what they do; those of other backends do not."""
    found = []
    for computation, instruction, times in program.executed():
        declared = re.search(r"kernel_metadata=\{([^{}]*)\}", instruction.rest)
        if not is_kernel(instruction) or not declared:
            continue
        fields = dict(re.findall(r'"(\w+)":"([^"]*)"', declared.group(1)))
        names = {field.name for field in dataclasses.fields(Kernel)} - {"times", "bytes"}
        if names <= fields.keys():
            numbers = ("channels", "states", "batch", "steps")
            values = {n: int(fields[n]) if n in numbers else fields[n] for n in names}
            moved = memory_bytes(program, computation, instruction)
            found.append(Kernel(**values, times=times, bytes=moved))
    return found


@functools.cache
def read_table() -> dict:
    """Reads the table of bundles: `rows`, and the command and versions that made it."""
    return json.loads(resources.files("posemamba_jax.scaling").joinpath(TABLE).read_text())


def find_row(kernel: Kernel, chip: Chip) -> tuple[dict, bool]:
    """Finds the table's row for a kernel on a chip.

    Where there is none for its channels and states, the row with the most registers of state that
    has not more than the kernel stands in for it, or else the one with the fewest. What registers
    share weighs more per register the fewer there are, so between rows and beyond the last this is
    rather too slow than too fast. For a path, an operator or a chip without rows the slowest of the
    others does.

    Returns:
      The row, and whether it is the kernel's own.
    """
    rows = [row for row in read_table()["rows"] if row["kernel"] == kernel.kernel]
    rows = [row for row in rows if row["chip"] == chip.name] or rows
    rows = [r for r in rows if (r["operator"], r["path"]) == (kernel.operator, kernel.path)] or rows

    def registers(row: dict) -> int:
        return row["channels"] * row["states"] // (_CHANNELS * _STATES)

    narrower = [registers(row) for row in rows if registers(row) <= kernel.registers]
    nearest = max(narrower) if narrower else min(map(registers, rows))
    row = max(
        (row for row in rows if registers(row) == nearest),
        key=lambda row: row["bundles_per_step_and_register"],
    )
    wanted = {"chip": chip.name} | {key: getattr(kernel, key) for key in _CLASS}
    return row, wanted.items() <= row.items()


def bundles(kernel: Kernel, topology: Topology) -> float:
    """Counts the bundles that a core issues for one call.

    The cores of a device share the batch elements of a call, one each at a time.
    """
    chip = topology.chip
    row, _ = find_row(kernel, chip)
    rounds = math.ceil(kernel.batch / (chip.cores // chip.devices))
    return rounds * kernel.steps * kernel.registers * row["bundles_per_step_and_register"]


def kernel_seconds(kernel: Kernel, topology: Topology) -> float:
    """Estimates the seconds of a kernel's calls in a training step.

    Blocks are copied from and to main memory while the block before or after is worked on, so a
    call takes as long as the slower of its bundles and its memory traffic.
    """
    chip = topology.chip
    moved = kernel.bytes / (chip.hbm_bandwidth / chip.devices)
    return kernel.times * max(bundles(kernel, topology) / chip.clock, moved)


def memory_traffic(kernels: Sequence[Kernel]) -> int:
    """Adds up the bytes that kernels move from and to main memory in a training step."""
    return sum(kernel.times * kernel.bytes for kernel in kernels)


def table_note() -> str | None:
    """Says so where the compiler that is installed is not the one the table was counted with."""
    counted, installed = read_table()["libtpu"], importlib.metadata.version("libtpu")
    if counted == installed:
        return None
    return (
        f"kernels are timed by libtpu {counted}'s schedule, the program is compiled by {installed}"
    )


def kernel_notes(kernels: Sequence[Kernel], calls: int, topology: Topology) -> list[str]:
    """Says what a reader should know of the kernels' time.

    Args:
      kernels: of a program.
      calls: how many kernel calls there are in all.
      topology: the slice.
    """
    notes = []
    silent = calls - sum(kernel.times for kernel in kernels)
    if silent:
        notes.append(f"{silent:,} kernel calls do not say what they do; their time is left out")
    found = {kernel.name: find_row(kernel, topology.chip) for kernel in kernels}
    for name, (row, own) in found.items():
        if not own:
            notes.append(
                f"{TABLE} has no {name} on {topology.chip.name}; per step and register it is timed "
                f"as {row['operator']}, {row['path']}, {row['channels']} channels of "
                f"{row['states']} states on {row['chip']}"
            )
    return notes
