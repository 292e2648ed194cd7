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
from collections.abc import Callable, Mapping

import jax

from selective_scan_jax import gpu_latency as latency
from selective_scan_jax.target import Target, lowering_for
from selective_scan_jax.triton.call import Launch, compile_kernel, recording
from selective_scan_jax.triton.heuristic import Config, split_cycles

# An H100 or H200: a scheduler's registers and the clock.
REGISTERS, CLOCK = 16384, 1.98e9
BANDWIDTH = 4.3e12  # bytes a second of an H200's memory, as reached in practice

# Loops over time of each kernel; the backward one computes states again, then the gradients.
_TIME_LOOPS = {"scan_ends": 1, "scan_forward": 1, "scan_adjoint_ends": 1, "scan_backward": 2}


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
        """The loops over time: those with the most exponentials. A turn takes a group of steps."""
        loops = latency.loops(self.listing)
        loops.sort(key=lambda loop: -sum(i.name == "MUFU" for i in loop))
        return loops[: _TIME_LOOPS[self.launch.kernel]]

    @functools.cache  # noqa: B019  (few, and they live as long as the process needs them)
    def cycles(self, warps: int) -> float:
        """Returns the modelled cycles a step of a scheduler with so many warps, all loops
        together.
        """
        turns = sum(latency.cycles(loop, warps) for loop in self.loops)
        return turns / self.launch.layout.group

    def figures(self) -> Figures:
        """Returns what the modelled time of the kernel at any size is made of."""
        resident = max(min(REGISTERS // (32 * -(-self.registers // 8) * 8), 8), 1)
        return Figures(
            self.launch.layout.group,
            self.registers,
            self.stack + self.local,
            tuple(round(self.cycles(warps), 1) for warps in range(1, resident + 1)),
        )


@dataclasses.dataclass(frozen=True)
class Figures:
    """A kernel's machine code in a few numbers.

    Attributes:
      group: steps whose operands are in flight.
      registers: of a thread.
      spilled: bytes of a thread.
      cycles: a step of a scheduler with 1, 2, ... warps, up to as many as the registers allow.
    """

    group: int
    registers: int
    spilled: int
    cycles: tuple[float, ...]


def modelled_ms(
    kernels: Mapping[tuple[str, int], Figures], shape: Mapping[str, int], config: Config,
    backward: bool = False,
) -> float:  # fmt: skip
    """Returns the modelled time of forward or backward kernels of a scan on an H100 or H200.

    It takes into account what `selective_scan_jax.gpu_latency` does, how many warps a scheduler
    has, the pass over segments and the walk through their ends, and the bytes of y (or of the
    gradient by u) that are written for each direction and part and read again to be added up.

    Args:
      kernels: figures by kernel and states of a program.
      shape: batch, length, channels, directions, state and rank.
      config: one program's channels are those of one warp, one a thread.
      backward: the backward kernels.
    """
    prefix = "backward_" if backward else ""
    states, segments = (getattr(config, prefix + name) for name in ("states", "segments"))
    scan, ends = (
        ("scan_backward", "scan_adjoint_ends") if backward else ("scan_forward", "scan_ends")
    )
    length, parts = shape["length"], -(-shape["state"] // states)
    steps = -(-length // (segments * config.whole_chunk)) * config.whole_chunk
    cycles = split_cycles(
        kernels[scan, states].cycles, kernels[ends, states].cycles,
        length=length, steps=min(steps, length), states=states,
        warps=shape["batch"] * shape["directions"] * parts * -(-shape["channels"] // 32),
    )  # fmt: skip
    outputs = shape["batch"] * length * shape["channels"] * shape["directions"] * parts
    return cycles / CLOCK * 1e3 + 2 * 4 * outputs / BANDWIDTH * 1e3


def compiled(function: Callable, *arguments, capability: int = 90) -> list[Compiled]:
    """Returns the kernels that a function of `jax.ShapeDtypeStruct`s calls, compiled."""
    return [analyse(launch, capability) for launch in launches(function, *arguments)]


def launches(function: Callable, *arguments, capability: int = 90) -> list[Launch]:
    """Returns the kernel calls of a function of `jax.ShapeDtypeStruct`s."""
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
