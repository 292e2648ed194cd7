"""What a Triton kernel costs, read off its machine code; needs no GPU.

Triton's wheel brings NVIDIA's compiler and disassembler. `compiled` gives the kernels of a call for
an architecture, with registers, spills and the instructions of the innermost loops.
"""

from __future__ import annotations

import collections
import dataclasses
import pathlib
import re
import subprocess
import tempfile
from collections.abc import Callable

import jax

from selective_scan_jax.target import Target, lowering_for
from selective_scan_jax.triton.call import Launch, compile_cubin, recording


@dataclasses.dataclass(frozen=True)
class Compiled:
    """A kernel for one architecture.

    Attributes:
      launch: grid, constants and warps it is called with.
      registers: of a thread.
      stack, local: bytes of a thread in memory; registers were spilled if any.
      shared: bytes of a program.
      loops: instructions by name of every loop that contains no other.
    """

    launch: Launch
    registers: int
    stack: int
    local: int
    shared: int
    loops: tuple[collections.Counter, ...]

    def per_state_step(self) -> float:
        """Instructions of the loops over time for one state, channel and step.

        The loops over time are those that compute an exponential for every state; the remainder of
        an unrolled loop is left out.
        """
        constants = self.launch.constants
        states = constants["BLOCK_N"] * constants["PER"]
        total, unrolled = 0.0, constants.get("UNROLL", 1)
        for loop in self.loops:
            steps = loop["MUFU"] // states
            if steps and (unrolled == 1 or steps == unrolled):
                total += loop.total() / (states * steps)
        return total

    def warps_per_multiprocessor(self, limit: int = 64) -> int:
        """Resident warps that the registers allow, of 65536 given out in units of 8 a thread."""
        warps = 65536 // (32 * -(-self.registers // 8) * 8)
        return min(warps, limit, 32 * self.launch.warps) // self.launch.warps * self.launch.warps


def compiled(function: Callable, *arguments, capability: int = 90) -> list[Compiled]:
    """The kernels that a function of `jax.ShapeDtypeStruct`s calls, compiled."""
    target = Target("gpu", f"compute capability {capability / 10}", capability)
    with lowering_for(target), recording() as launches:
        jax.eval_shape(lambda *a: function(*a), *arguments)
    return [analyse(launch, capability) for launch in launches]


def analyse(launch: Launch, capability: int) -> Compiled:
    """Compiles a kernel and reads its machine code."""
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder) / "kernel.cubin"
        path.write_bytes(compile_cubin(launch, capability))
        usage = _tool("cuobjdump", "-res-usage", str(path))
        text = _tool("nvdisasm", "-c", str(path))

    def used(what: str) -> int:
        return int(re.search(rf"\b{what}:(\d+)", usage)[1])

    numbers = (used(what) for what in ("REG", "STACK", "LOCAL", "SHARED"))
    return Compiled(launch, *numbers, tuple(_innermost_loops(text)))


def _tool(name: str, *arguments: str) -> str:
    from triton.backends.nvidia import compiler

    path = pathlib.Path(compiler.__file__).parent / "bin" / name
    return subprocess.run([path, *arguments], capture_output=True, text=True, check=True).stdout


def _innermost_loops(text: str) -> list[collections.Counter]:
    instructions, labels = [], {}
    for line in text.splitlines():
        if label := re.match(r"(\.L_\w+):", line):
            labels[label[1]] = len(instructions)
        elif found := re.match(r"\s+/\*[0-9a-f]{4,}\*/\s+(.*?);", line):
            instructions.append(found[1])
    loops = []
    for i, instruction in enumerate(instructions):
        jump = re.search(r"BRA.*`\((\.L_\w+)\)", instruction)
        start = labels.get(jump[1], i) if jump else i
        if start < i:
            loops.append((start, i))
    inner = [a for a in loops if not any(a != b and a[0] <= b[0] and b[1] <= a[1] for b in loops)]
    names = [re.sub(r"^@!?U?P\w+\s+", "", x).split()[0].split(".")[0] for x in instructions]
    return [collections.Counter(names[a : b + 1]) for a, b in inner]
