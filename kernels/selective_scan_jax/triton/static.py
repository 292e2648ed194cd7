"""What a Triton kernel costs, read off its machine code; needs no GPU.

Triton's wheel brings NVIDIA's compiler and disassembler. `compiled` gives the kernels of a call for
an architecture, with registers, spills and the loops over time, whose cycles the latency model
gives.
"""

from __future__ import annotations

import dataclasses
import functools
import pathlib
import re
import subprocess
import tempfile
from collections.abc import Callable

import jax

from selective_scan_jax.target import Target, lowering_for
from selective_scan_jax.triton import latency
from selective_scan_jax.triton.call import Launch, compile_kernel, recording

# An H100 or H200: multiprocessors of four schedulers with 16384 registers each, and its clock.
SCHEDULERS, REGISTERS, CLOCK = 132 * 4, 16384, 1.98e9

# Groups of steps in a turn of each kernel's loops over time, those with more exponentials first.
_GROUPS = {
    "scan_ends": (1,),
    "scan_forward": (1,),
    "scan_adjoint_ends": (1,),
    "scan_backward": (2, 1),  # the states again, then the gradients
}


@dataclasses.dataclass(frozen=True)
class Compiled:
    """A kernel for one architecture.

    Attributes:
      launch: the call that it was compiled for.
      registers: of a thread.
      stack, local: bytes of a thread in memory; registers were spilled if any.
      shared: bytes of a program.
      listing: the machine code.
    """

    launch: Launch
    registers: int
    stack: int
    local: int
    shared: int
    listing: str

    @functools.cached_property
    def loops(self) -> list[list[latency.Instruction]]:
        """The loops over time: those with the most exponentials."""
        loops = latency.loops(self.listing)
        loops.sort(key=lambda loop: -sum(i.name == "MUFU" for i in loop))
        return loops[: len(_GROUPS[self.launch.kernel])]

    @functools.cache  # noqa: B019  (few, and they live as long as the process needs them)
    def cycles(self, warps: int) -> float:
        """Modelled cycles a step of a scheduler with so many warps, all loops over time together."""
        groups = zip(self.loops, _GROUPS[self.launch.kernel], strict=True)
        turns = sum(latency.cycles(loop, warps) / count for loop, count in groups)
        return turns / self.launch.layout.group

    def warps_per_scheduler(self) -> int:
        """Warps that the registers allow at a time; registers are given out in units of eight."""
        return max(min(REGISTERS // (32 * -(-self.registers // 8) * 8), 16), 1)

    def milliseconds(self, programs: int, steps: int) -> float:
        """Modelled time of so many programs of so many steps each on an H100 or H200."""
        warps = -(-programs * self.launch.warps // SCHEDULERS)
        rounds, rest = divmod(warps, self.warps_per_scheduler())
        cycles = rounds * self.cycles(self.warps_per_scheduler()) if rounds else 0.0
        cycles += self.cycles(rest) if rest else 0.0
        return steps * cycles / CLOCK * 1e3


def compiled(function: Callable, *arguments, capability: int = 90) -> list[Compiled]:
    """The kernels that a function of `jax.ShapeDtypeStruct`s calls, compiled."""
    return [analyse(launch, capability) for launch in launches(function, *arguments)]


def launches(function: Callable, *arguments, capability: int = 90) -> list[Launch]:
    """The kernel calls of a function of `jax.ShapeDtypeStruct`s."""
    target = Target("gpu", f"compute capability {capability / 10}", capability)
    with lowering_for(target), recording() as calls:
        jax.eval_shape(lambda *a: function(*a), *arguments)
    return calls


def analyse(launch: Launch, capability: int) -> Compiled:
    """Compiles a kernel and reads its machine code."""
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder) / "kernel.cubin"
        path.write_bytes(compile_kernel(launch, capability)["cubin"])
        usage = _tool("cuobjdump", "-res-usage", str(path))
        listing = _tool("nvdisasm", "-c", str(path))

    def used(what: str) -> int:
        return int(re.search(rf"\b{what}:(\d+)", usage)[1])

    numbers = (used(what) for what in ("REG", "STACK", "LOCAL", "SHARED"))
    return Compiled(launch, *numbers, listing)


def _tool(name: str, *arguments: str) -> str:
    from triton.backends.nvidia import compiler

    path = pathlib.Path(compiler.__file__).parent / "bin" / name
    return subprocess.run([path, *arguments], capture_output=True, text=True, check=True).stdout
