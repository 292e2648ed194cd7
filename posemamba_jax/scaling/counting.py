"""Adds up the work of a compiled program: matrix products, element operations, memory traffic."""

import dataclasses
import math
import re

from selective_scan_jax.backends import kernel_backend

from posemamba_jax.scaling.hlo import Computation, Instruction, Program, Shape

# Passes over the bfloat16 matrix unit that a float32 product takes (XLA's bf16_3x and bf16_6x).
_PASSES = {"default": 1, "high": 3, "highest": 6}


def _names(text: str) -> frozenset[str]:
    return frozenset(text.split())


_TRANSCENDENTAL = _names(
    "exponential exponential-minus-one log log-plus-one power sqrt rsqrt cbrt tanh logistic sine "
    "cosine tan atan2 erf"
)
_ELEMENTWISE = _TRANSCENDENTAL | _names(
    "add subtract multiply divide maximum minimum negate abs compare select and or xor not clamp "
    "sign floor ceil round-nearest-afz round-nearest-even remainder shift-left is-finite "
    "shift-right-logical shift-right-arithmetic"
)
# Instructions that only name, pass on or start what others do.
_FREE = _names(
    "parameter constant tuple get-tuple-element bitcast while conditional call after-all "
    "partition-id replica-id opt-barrier add-dependency domain async-update"
)


@dataclasses.dataclass(frozen=True)
class Work:
    """This holds what one execution does on one device; loops count as often as they run.

    Attributes:
      matrix_flops: of matrix products and convolutions, two for a multiply-add.
      matrix_passes: the same, a float32 product counted as often as it passes through a bfloat16
        matrix unit.
      vector_ops: arithmetic on elements outside of matrix products.
      transcendentals: how many of these are exponentials, roots and the like.
      memory_bytes: read from and written to main memory, padding included.
      kernels: calls of custom kernels, of which the compiler sees arguments and results only;
        `posemamba_jax.scaling.kernels` knows what they do.
    """

    matrix_flops: float
    matrix_passes: float
    vector_ops: float
    transcendentals: float
    memory_bytes: float
    kernels: int


def count_work(program: Program) -> Work:
    """Adds up the program's work."""
    total = dict.fromkeys((field.name for field in dataclasses.fields(Work)), 0)
    fused = _fused(program)
    for computation, instruction, times in program.executed():
        opcode = instruction.opcode
        if opcode in ("dot", "convolution"):
            flops = matrix_flops(computation, instruction)
            total["matrix_flops"] += times * flops
            total["matrix_passes"] += times * flops * _passes(computation, instruction)
        elif opcode in _ELEMENTWISE:
            total["vector_ops"] += times * instruction.shape.size
            if opcode in _TRANSCENDENTAL:
                total["transcendentals"] += times * instruction.shape.size
        elif opcode == "reduce":
            total["vector_ops"] += times * _operand_shape(computation, instruction, 0).size
        elif is_kernel(instruction):
            total["kernels"] += times
        if computation.name not in fused:
            total["memory_bytes"] += times * memory_bytes(program, computation, instruction)
    return Work(**total)


def is_kernel(instruction: Instruction) -> bool:
    """Returns true if the instruction calls a kernel of one of the scan's backends."""
    target = (instruction.attribute("custom_call_target") or "").strip('"')
    return instruction.opcode == "custom-call" and kernel_backend(target) is not None


def _fused(program: Program) -> set[str]:
    """Finds the computations whose values live in registers: the bodies of fusions."""
    found = set()
    for _, instruction, _ in program.executed():
        if instruction.opcode == "fusion":
            found.update(instruction.called)
    # A fusion inside a fusion's body is fused as well; `executed` has visited its body too.
    return found


def _operand_shape(computation: Computation, instruction: Instruction, index: int) -> Shape:
    return computation.instructions[instruction.operands[index]].shape


def _passes(computation: Computation, instruction: Instruction) -> int:
    if _operand_shape(computation, instruction, 0).dtype != "f32":
        return 1
    precision = re.findall(r"\w+", instruction.attribute("operand_precision") or "default")
    return max(_PASSES.get(name, 1) for name in precision)


def matrix_flops(computation: Computation, instruction: Instruction) -> float:
    """Counts the multiplications and additions of a `dot` or `convolution`."""
    out = instruction.shape
    left, right = (_operand_shape(computation, instruction, i) for i in (0, 1))
    if instruction.opcode == "dot":
        axes = re.findall(r"\d+", instruction.attribute("lhs_contracting_dims") or "")
        return 2.0 * out.size * math.prod(left.dims[int(axis)] for axis in axes)
    inputs, kernel, outputs = re.split(r"_|->", instruction.attribute("dim_labels"))
    window = _window(instruction.attribute("window"), sum(c.isdigit() for c in inputs))
    positions = 1
    for axis, spec in enumerate(window):
        label = str(axis)
        positions *= _valid_positions(
            left.dims[inputs.index(label)], out.dims[outputs.index(label)], spec
        )
    groups = int(instruction.attribute("batch_group_count") or 1)
    return (
        2.0
        * positions
        * right.dims[kernel.index("i")]
        * out.dims[outputs.index("f")]
        * (left.dims[inputs.index("b")] // groups)
    )


@dataclasses.dataclass(frozen=True)
class _Window:
    size: int = 1
    stride: int = 1
    low: int = 0
    lhs_dilate: int = 1
    rhs_dilate: int = 1


def _window(text: str | None, axes: int) -> list[_Window]:
    """Reads one entry per spatial axis from `{size=3x3 pad=1_1x1_1 ...}`."""
    fields = dict(re.findall(r"(\w+)=([\w-]+)", text or ""))
    pads = [pad.split("_")[0] for pad in fields["pad"].split("x")] if "pad" in fields else []
    columns = {"low": pads} | {
        name: fields[name].split("x")
        for name in ("size", "stride", "lhs_dilate", "rhs_dilate")
        if name in fields
    }
    return [
        _Window(**{name: int(values[axis]) for name, values in columns.items() if values})
        for axis in range(axes)
    ]


def _valid_positions(length: int, out: int, window: _Window) -> int:
    """Counts the pairs of an output and a kernel position that meet an element, not padding."""
    if window == _Window(size=window.size) and out == length - window.size + 1:
        return out * window.size
    count = 0
    last = (length - 1) * window.lhs_dilate
    for k in range(window.size):
        for o in range(out):
            at = o * window.stride + k * window.rhs_dilate - window.low
            count += 0 <= at <= last and at % window.lhs_dilate == 0
    return count


def memory_bytes(program: Program, computation: Computation, instruction: Instruction) -> int:
    """Counts the bytes that an instruction outside of fusions moves from and to main memory."""
    opcode = instruction.opcode
    if opcode in _FREE or opcode.endswith("-start"):
        return 0
    operands = [computation.instructions[name] for name in instruction.operands]
    if opcode.endswith("-done"):  # Copies and collectives that run beside other work.
        start = operands[0] if operands else None
        source = computation.instructions.get(start.operands[0]) if start else None
        from_memory = source is not None and source.shape.in_main_memory
        read = instruction.shape.stored_bytes if from_memory else 0
        return read + _stored(instruction.shape)
    if opcode == "custom-call" and not is_kernel(instruction):
        return 0  # Allocations and annotations.
    if opcode == "dynamic-slice" or opcode == "slice":
        return _stored(instruction.shape) * 2
    if opcode == "dynamic-update-slice":
        return _stored(operands[1].shape) * 2
    if opcode == "fusion":
        return _fusion_bytes(
            program, program.computations[instruction.called[0]], instruction, operands
        )
    read = sum(_stored(shape) for operand in operands for shape in operand.shapes)
    return read + sum(map(_stored, instruction.shapes))


def _stored(shape: Shape) -> int:
    return shape.stored_bytes if shape.in_main_memory else 0


def _fusion_bytes(
    program: Program, body: Computation, fusion: Instruction, operands: list[Instruction]
) -> int:
    """Counts a fusion's bytes: it reads what its body uses and writes what it changes."""
    total = 0
    for parameter, operand in zip(body.parameters(), operands, strict=False):
        if operand.shape.in_main_memory:
            used = _used_bytes(program, body, parameter)
            total += sum(map(_stored, operand.shapes)) if used is None else used
    root = body.root
    results = (
        [body.instructions[name] for name in root.operands] if root.opcode == "tuple" else [root]
    )
    for result, shape in zip(results, fusion.shapes, strict=False):
        if shape.in_main_memory:
            total += _changed_bytes(program, body, result) or shape.stored_bytes
    return total


def _used_bytes(program: Program, body: Computation, parameter: Instruction) -> int | None:
    """Counts the bytes of the slices that a body takes of a parameter; None if it reads all."""
    total = 0
    names = [parameter.name]
    while names:
        name = names.pop()
        for user in body.users(name):
            if user.opcode == "bitcast":
                names.append(user.name)
            elif user.opcode in ("dynamic-slice", "slice") and user.operands[0] == name:
                total += user.shape.stored_bytes
            elif user.opcode == "fusion":
                inner = program.computations[user.called[0]]
                place = inner.parameters()[user.operands.index(name)]
                used = _used_bytes(program, inner, place)
                if used is None:
                    return None
                total += used
            elif user.opcode != "dynamic-update-slice" or user.operands[0] != name:
                return None
    return total


def _changed_bytes(program: Program, body: Computation, result: Instruction) -> int | None:
    """Counts the bytes that a result changes in place; None if it is written as a whole."""
    while result.opcode in ("bitcast", "fusion"):
        if result.opcode == "bitcast":
            result = body.instructions[result.operands[0]]
        else:
            body = program.computations[result.called[0]]
            result = body.root
    if result.opcode != "dynamic-update-slice":
        return None
    return body.instructions[result.operands[1]].shape.stored_bytes
