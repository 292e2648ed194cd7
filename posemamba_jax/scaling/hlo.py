"""Reads the text of a compiled XLA program: its computations, how often each runs, array sizes.

The text is what `jax.stages.Compiled.as_text` gives. XLA's own cost analysis counts the body of a
loop once; this reader finds how often loops run, so that work inside the loop over depths counts as
often as it is done.
"""

import dataclasses
import math
import re
from collections.abc import Iterator

_BYTES = {
    **dict.fromkeys(("pred", "s8", "u8", "f8e4m3fn", "f8e5m2", "f8e4m3b11fnuz"), 1),
    **dict.fromkeys(("bf16", "f16", "s16", "u16"), 2),
    **dict.fromkeys(("f32", "s32", "u32"), 4),
    **dict.fromkeys(("f64", "s64", "u64", "c64"), 8),
    "c128": 16,
}
_SHAPE = re.compile(r"([a-z]\w*)\[([\d,]*)\](?:\{([^{}]*)\})?")
_HEADER = re.compile(r"^(ENTRY )?%?([\w.-]+) \(.*\) -> .* \{$")
_NAME = re.compile(r"%([\w.-]+)")
_CALLED = re.compile(
    r"(?:calls|to_apply|condition|body|branch_computations|called_computations|true_computation"
    r"|false_computation)=(?:\{([^}]*)\}|%?([\w.-]+))"
)


@dataclasses.dataclass(frozen=True)
class Shape:
    """This describes one array of an instruction's result.

    Attributes:
      dtype: such as `f32`.
      dims: sizes.
      layout: text of the layout: minor-to-major order, tiles, memory space.
    """

    dtype: str
    dims: tuple[int, ...]
    layout: str = ""

    @property
    def size(self) -> int:
        return math.prod(self.dims)

    @property
    def bytes(self) -> int:
        """The size of the elements alone, in bytes."""
        return self.size * _BYTES.get(self.dtype, 0)

    @property
    def in_main_memory(self) -> bool:
        """False for arrays that the compiler keeps in on-chip memory, `S(1)` and up in layouts."""
        return re.search(r"S\([1-9]", self.layout) is None

    @property
    def stored_bytes(self) -> int:
        """The size in bytes with the padding of the first tile of the layout, such as T(8,128)."""
        order, _, tiling = self.layout.partition(":")
        tile = re.match(r"T\(([\d,]+)\)", tiling)
        if not tile or not order or not self.dims:
            return self.bytes
        dims = [self.dims[int(axis)] for axis in order.split(",")]  # Minor first.
        for axis, length in enumerate(reversed([int(x) for x in tile.group(1).split(",")])):
            if axis < len(dims):
                dims[axis] = -(-dims[axis] // length) * length
        return math.prod(dims) * _BYTES.get(self.dtype, 0)


@dataclasses.dataclass(frozen=True)
class Instruction:
    """This is one line of a computation; `rest` is the text after the operands."""

    name: str
    opcode: str
    shapes: tuple[Shape, ...]
    operands: tuple[str, ...]
    rest: str
    is_root: bool
    arguments: str

    @property
    def shape(self) -> Shape:
        return self.shapes[0] if self.shapes else Shape("token", ())

    @property
    def called(self) -> tuple[str, ...]:
        """The names of the computations that the instruction runs."""
        found = _CALLED.findall(self.rest)
        return tuple(
            name
            for listed, single in found
            for name in ([single] if single else re.findall(r"[\w.-]+", listed))
        )

    @property
    def source(self) -> str:
        """The place in the traced program that it comes from: `jit(step)/.../dot_general`, or
        nothing.
        """
        found = re.search(r'op_name="([^"]*)"', self.rest)
        return found.group(1).replace("\\'", "'") if found else ""

    def attribute(self, name: str) -> str | None:
        """Returns the text of `name=...` up to the next comma outside brackets."""
        found = re.search(rf"(?:^|[ ,]){name}=", self.rest)
        if not found:
            return None
        start, depth = found.end(), 0
        for i in range(start, len(self.rest)):
            char = self.rest[i]
            depth += (char in "[{(") - (char in "]})")
            if depth < 0 or (char == "," and depth == 0):
                return self.rest[start:i].strip()
        return self.rest[start:].strip()


@dataclasses.dataclass
class Computation:
    """A computation holds its instructions in their order."""

    name: str
    instructions: dict[str, Instruction]

    @property
    def root(self) -> Instruction:
        return next(i for i in reversed(self.instructions.values()) if i.is_root)

    def parameters(self) -> list[Instruction]:
        """Its parameters by number."""
        found = [i for i in self.instructions.values() if i.opcode == "parameter"]
        return sorted(found, key=lambda i: int(i.arguments))

    def users(self, name: str) -> list[Instruction]:
        """Finds the instructions that read a value."""
        return [i for i in self.instructions.values() if name in i.operands]


@dataclasses.dataclass
class Program:
    """This holds a compiled program and how often its parts run.

    Attributes:
      computations: by name.
      entry: name of the one that runs first.
      times: how often each computation runs in one execution; fusions' bodies included.
      unknown_loops: sources of loops whose length could not be read; their bodies count once.
    """

    computations: dict[str, Computation]
    entry: str
    times: dict[str, int]
    unknown_loops: list[str]

    def executed(self) -> Iterator[tuple[Computation, Instruction, int]]:
        """Lists (computation, instruction, how often it runs) of all that run at all."""
        for name, count in self.times.items():
            for instruction in self.computations[name].instructions.values():
                yield self.computations[name], instruction, count


def parse(text: str) -> Program:
    """Reads the text of a compiled program.

    Raises:
      ValueError: the text has no entry computation.
    """
    computations: dict[str, Computation] = {}
    entry, current = "", None
    for line in _join_metadata(text).splitlines():
        if current is None:
            header = _HEADER.match(line)
            if header:
                current = computations[header.group(2)] = Computation(header.group(2), {})
                entry = header.group(2) if header.group(1) else entry
        elif line.startswith("}"):
            current = None
        else:
            instruction = _parse_instruction(line.strip())
            if instruction:
                current.instructions[instruction.name] = instruction
    if not entry:
        raise ValueError("the text has no ENTRY computation: not a compiled XLA program")
    program = Program(computations, entry, {}, [])
    _count(program, entry, 1)
    return program


def _join_metadata(text: str) -> str:
    """Puts what a kernel says of itself, which is written over several lines, into one line."""
    return re.sub(r"kernel_metadata=\{[^{}]*\}", lambda m: m.group().replace("\n", ""), text)


def _parse_instruction(line: str) -> Instruction | None:
    found = re.match(r"(ROOT )?%?([\w.-]+) = ", line)
    if not found:
        return None
    rest = line[found.end() :]
    end = _closing(rest, 0) + 1 if rest.startswith("(") else rest.find(" ")
    shapes = tuple(
        Shape(dtype, tuple(int(d) for d in dims.split(",") if d), layout)
        for dtype, dims, layout in _SHAPE.findall(rest[:end])
    )
    call = re.match(r"\s*([\w-]+)\(", rest[end:])
    if not call:
        return None
    open_ = end + call.end() - 1
    close = _closing(rest, open_)
    arguments = rest[open_ + 1 : close]
    return Instruction(
        found.group(2),
        call.group(1),
        shapes,
        tuple(_NAME.findall(arguments)),
        rest[close + 1 :].lstrip(", "),
        bool(found.group(1)),
        arguments,
    )


def _closing(text: str, start: int) -> int:
    """Returns the index of the bracket that closes the one at `start`."""
    depth = 0
    for found in re.compile(r"[()]").finditer(text, start):
        depth += 1 if found.group() == "(" else -1
        if depth == 0:
            return found.start()
    return len(text) - 1


def _count(program: Program, name: str, times: int) -> None:
    """Adds to how often a computation and those it calls run."""
    program.times[name] = program.times.get(name, 0) + times
    for instruction in program.computations[name].instructions.values():
        for called in instruction.called:
            if called not in program.computations or _is_scalar_function(instruction):
                continue
            inner = times
            if instruction.opcode == "while" and called == instruction.attribute("body").lstrip(
                "%"
            ):
                length = loop_length(program, program.computations[name], instruction)
                if length is None:
                    program.unknown_loops.append(instruction.source or instruction.name)
                inner = times * (1 if length is None else length)
            _count(program, called, inner)


def _is_scalar_function(instruction: Instruction) -> bool:
    """Returns true if what the instruction calls is applied to elements, as a sum or a comparison
    is.
    """
    return instruction.opcode.removesuffix("-start") in (
        "reduce", "reduce-window", "scatter", "sort", "map", "select-and-scatter",
        "all-reduce", "reduce-scatter",
    )  # fmt: skip


def loop_length(program: Program, inside: Computation, loop: Instruction) -> int | None:
    """Finds how often a loop's body runs; None if the program does not say.

    JAX's scans and counted loops compile to a loop whose condition compares a counter, which rises
    by one, with a constant.
    """
    known = re.search(r'known_trip_count\\?":\{\\?"n\\?":\\?"(\d+)', loop.rest)
    if known:
        return int(known.group(1))
    condition = program.computations.get((loop.attribute("condition") or "").lstrip("%"))
    if condition is None:
        return None
    test, scope = condition.root, condition
    if test.opcode in ("fusion", "call") and test.called:
        scope = program.computations[test.called[0]]
        test = scope.root
    if test.opcode != "compare" or "direction=LT" not in test.rest:
        return None
    left, right = (_resolve(condition, scope, name) for name in test.operands)
    limit, index = _constant(right), left.attribute("index") if left else None
    if limit is None or index is None:
        return None
    carried = inside.instructions.get(loop.operands[0])
    start = None
    if carried is not None and carried.opcode == "tuple":
        start = _constant(inside.instructions.get(carried.operands[int(index)]))
    return max(limit - (start or 0), 0)


def _resolve(outer: Computation, scope: Computation, name: str) -> Instruction | None:
    """Finds the instruction behind a name, through the parameters of a fused condition."""
    found = scope.instructions.get(name)
    if found is not None and found.opcode == "parameter" and scope is not outer:
        return outer.instructions.get(outer.root.operands[int(found.arguments)])
    return found


def _constant(instruction: Instruction | None) -> int | None:
    if instruction is None or instruction.opcode != "constant":
        return None
    return int(instruction.arguments) if re.fullmatch(r"-?\d+", instruction.arguments) else None
