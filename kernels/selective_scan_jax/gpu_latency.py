"""Cycles of a loop, modelled from its machine code (SASS); needs no GPU.

An instruction count says nothing about waiting: the result of a load is there hundreds of cycles
after the load, and a GPU issues the instructions of a warp in order, so everything behind the first
use of the result waits. The model is one scheduler of a multiprocessor with a number of identical
warps. A cycle issues one instruction of a warp whose operands are there and whose unit is free.

It takes into account: dependences between registers, the latencies below, the rates of the
special-function and the load/store unit, and that two loads of one 32-byte sector wait for it
once. It leaves out: bandwidths of the caches and of memory, bank conflicts, instruction fetches,
what other schedulers of the multiprocessor do. Figures are good to about 30 %: enough to compare
ways to write or cut up a kernel, no replacement for a measurement.
"""

from __future__ import annotations

import collections
import dataclasses
import functools
import re
from collections.abc import Mapping, Sequence

# Cycles on Hopper, as published microbenchmarks give them.
ARITHMETIC, WIDE, UNIFORM, SPECIAL, SHUFFLE, SHARED = 4, 6, 8, 22, 24, 30
L1, L2 = 33, 270
# Cycles that a warp's instruction keeps a unit busy.
SPECIAL_BUSY, ACCESS_BUSY, WIDE_ACCESS_BUSY = 8, 2, 4
TURN = 8  # from a branch to the first instruction of the next turn
# An H100 or H200: schedulers, four to a multiprocessor.
SCHEDULERS = 132 * 4

_REGISTER = re.compile(r"\b(UR|R|UP|P)(\d+)\b(\.64)?")
_GLOBAL = re.compile(r"\[(R\d+)\.64(?:\+(-?0x[0-9a-f]+))?\]")
_INSTRUCTION = re.compile(r"\s+/\*[0-9a-f]{4,}\*/\s+(.*?);")
_LABEL = re.compile(r"(\.L_\w+):")
_JUMP = re.compile(r"BRA.*`\((\.L_\w+)\)")
_GUARD = re.compile(r"@!?(U?P\w+)\s+")
_CARRIES = {"ISETP", "UISETP", "FSETP", "LEA", "ULEA", "IADD3", "UIADD3", "PLOP3", "LOP3", "ULOP3"}
_STORES = {"STG", "STS", "STSM", "STL", "ST"}
_NO_RESULT = _STORES | {"BRA", "EXIT", "BAR", "NOP", "WARPSYNC"}
# A pointer of which the compiler does not know where it leads is read by LD; here it is global.
_GLOBAL_LOADS = {"LDG", "LD"}
_ACCESSES = _STORES | _GLOBAL_LOADS | {"LDS", "LDSM", "LDL"}


@dataclasses.dataclass(frozen=True)
class Instruction:
    """One instruction of a warp.

    Attributes:
      text: as the disassembler writes it.
      name: the operation without its modifiers.
      writes, reads: registers.
      sector: of a global load, its address register and the sector from there; else None.
      latency: cycles to its result, that of a global load if it misses the first cache.
      busy: cycles that it keeps the special-function or the load/store unit busy.
    """

    text: str
    name: str
    writes: tuple[str, ...]
    reads: tuple[str, ...]
    sector: tuple[str, int] | None
    latency: int
    busy: int


def loops(listing: str) -> list[list[Instruction]]:
    """Returns the innermost loops of a kernel, from `nvdisasm -c`."""
    texts, labels, spans = [], {}, []
    for line in listing.splitlines():
        if label := _LABEL.match(line):
            labels[label[1]] = len(texts)
        elif found := _INSTRUCTION.match(line):
            texts.append(" ".join(found[1].split()))
    for end, text in enumerate(texts):
        jump = _JUMP.search(text)
        if jump and labels.get(jump[1], end + 1) <= end:
            spans.append((labels[jump[1]], end + 1))
    inner = [a for a in spans if not any(a != b and a[0] <= b[0] and b[1] <= a[1] for b in spans)]
    return [[decode(text) for text in texts[start:end]] for start, end in inner]


@functools.lru_cache(maxsize=100_000)
def decode(text: str) -> Instruction:
    """Returns what the model has to know of an instruction."""
    guard, rest = (), text
    if found := _GUARD.match(text):
        guard, rest = tuple(_registers(found[1])), text[found.end() :]
    opcode, _, operands = rest.partition(" ")
    name, modifiers = opcode.split(".")[0], opcode.split(".")[1:]
    fields = [x.strip() for x in re.split(r",(?![^\[]*\])", operands)] if operands else []
    numbers = 4 if "128" in modifiers else 2 if "64" in modifiers else 1
    wide = "WIDE" in modifiers
    writes, sources = (), fields
    if name not in _NO_RESULT and fields:
        width = numbers if name in _ACCESSES else 2 if wide or name == "CS2R" else 1
        if name == "LDSM" and modifiers[-1].isdigit():
            width = int(modifiers[-1])
        writes, sources = tuple(_registers(fields[0], width)), fields[1:]
        while name in _CARRIES and sources and re.fullmatch(r"U?P(\d+|T)", sources[0]):
            writes += tuple(_registers(sources[0]))
            sources = sources[1:]
    reads = list(guard)
    for i, field in enumerate(sources):
        stored = name in _NO_RESULT and "[" not in field
        pair = wide and i == len(sources) - 1
        reads += _registers(field, numbers if stored else 2 if pair else 1)
    address = _GLOBAL.search(text) if name in _GLOBAL_LOADS else None
    sector = (address[1], int(address[2] or "0", 16) // 32) if address else None
    return Instruction(
        text, name, writes, tuple(reads), sector, _latency(name, wide), _busy(name, numbers)
    )


def _registers(field: str, width: int = 1) -> list[str]:
    found = []
    for kind, number, pair in _REGISTER.findall(field):
        found += [f"{kind}{int(number) + i}" for i in range(max(width, 2 if pair else 1))]
    return found


def _latency(name: str, wide: bool) -> int:
    if name in _GLOBAL_LOADS:
        return L2
    if name == "LDL":
        return L1
    if name in ("LDS", "LDSM"):
        return SHARED
    if name == "MUFU":
        return SPECIAL
    if name == "SHFL":
        return SHUFFLE
    if name.startswith("U"):
        return UNIFORM
    return WIDE if wide or name in ("HFMA2", "I2F", "F2I") else ARITHMETIC


def _busy(name: str, numbers: int) -> int:
    if name == "MUFU":
        return SPECIAL_BUSY
    if name in _ACCESSES:
        return WIDE_ACCESS_BUSY if numbers == 4 and name in _GLOBAL_LOADS else ACCESS_BUSY
    return 0


class _Warp:
    """Where a warp is in its loop, and when its registers are there."""

    def __init__(self, start: int):
        self.at, self.turn, self.next = 0, 0, start
        self.ready: collections.Counter[str] = collections.Counter()
        self.written: collections.Counter[str] = collections.Counter()
        self.sectors: dict[tuple, int] = {}
        self.turns_end: list[int] = []

    def can_issue(self, instruction: Instruction, free: dict[str, int]) -> int:
        """Returns the first cycle at which the instruction can go out."""
        registers = instruction.reads + instruction.writes
        unit = free[instruction.name == "MUFU"] if instruction.busy else 0
        return max(self.next, unit, *(self.ready[r] for r in registers), 0)

    def issue(self, instruction: Instruction, clock: int, free: dict[str, int], length: int):
        if instruction.busy:
            free[instruction.name == "MUFU"] = clock + instruction.busy
        latency = instruction.latency
        if instruction.sector is not None:
            base, sector = instruction.sector
            key = (base, self.written[base], self.turn, sector)
            if key in self.sectors:
                latency = max(L1, self.sectors[key] - clock)
            self.sectors.setdefault(key, clock + latency)
        for register in instruction.writes:
            self.ready[register] = clock + latency
            self.written[register] += 1
        self.at, self.next = self.at + 1, clock + 1
        if self.at == length:
            self.at, self.turn, self.next = 0, self.turn + 1, clock + TURN
            self.turns_end.append(clock)


def cycles(loop: list[Instruction], warps: int = 1, turns: int = 12, warm_up: int = 4) -> float:
    """Cycles that a scheduler with `warps` identical warps takes for a turn of all of them."""
    running = collections.deque(_Warp(37 * i) for i in range(warps))
    everyone = list(running)
    free, clock = {True: 0, False: 0}, 0
    while running:
        earliest = []
        for warp in running:
            at = warp.can_issue(loop[warp.at], free)
            if at <= clock:
                break
            earliest.append(at)
        else:
            clock = min(earliest)
            continue
        warp.issue(loop[warp.at], clock, free, len(loop))
        clock += 1
        running.remove(warp)
        if warp.turn < turns:
            running.append(warp)  # the one that has waited longest goes first
    spans = [w.turns_end[-1] - w.turns_end[warm_up - 1] for w in everyone]
    return sum(spans) / len(spans) / (turns - warm_up)


def cycles_of(step: Sequence[float], warps: int) -> float:
    """Returns the cycles of a step of so many warps, spread over all schedulers.

    Args:
      step: a step's cycles of a scheduler with 1, 2, ... warps, up to as many as fit at a time.
      warps: of the whole scan.
    """
    rounds, rest = divmod(-(-warps // SCHEDULERS), len(step))
    return rounds * step[-1] + (step[rest - 1] if rest else 0.0)


def fewest_alike(times: Mapping[int, float], alike: float) -> int:
    """Returns the smallest count whose modelled time is at most `alike` times the shortest.

    Args:
      times: by count, of what a scan's length is cut into.
      alike: at least 1.
    """
    return min(n for n, time in times.items() if time <= alike * min(times.values()))
