"""Finds a compiled program's communication between devices: what, how much, how often, along what.

Collectives that run in the background appear as a start and a done and, spread over the work they
hide behind, as copies with one channel; each counts once. A channel alone does not tell them apart:
JAX gives all sums of a `shard_map` the same one.
"""

import dataclasses
import itertools
import re
from collections.abc import Mapping

import numpy as np

from posemamba_jax.scaling.hlo import Instruction, Program

KINDS = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")


@dataclasses.dataclass(frozen=True)
class Collective:
    """This describes one instruction that moves data between devices.

    Attributes:
      kind: one of `KINDS`.
      shape: of what a device holds afterwards, as text; the largest array of several.
      arrays: how many arrays are moved together.
      bytes: of one run: what a device holds afterwards, or before for a reduce-scatter.
      times: runs in a step.
      group: devices that take part together.
      axes: mesh axes that they are spread over, such as ("fsdp",); empty if no axes fit.
      content: "parameters", "gradients", "activations" or "scalars".
      source: operation of the traced program that it serves.
    """

    kind: str
    shape: str
    arrays: int
    bytes: int
    times: int
    group: int
    axes: tuple[str, ...]
    content: str
    source: str

    @property
    def sent_bytes(self) -> float:
        """Bytes that a device sends in a step with the usual ring algorithms."""
        share = (self.group - 1) / self.group
        factor = {"all-reduce": 2 * share, "collective-permute": 1.0}.get(self.kind, share)
        return self.times * self.bytes * factor

    @property
    def rounds(self) -> int:
        """Times around the ring in one run: a sum is collected first and then handed out."""
        return 2 if self.kind == "all-reduce" else 1


def find_collectives(
    program: Program, mesh: Mapping[str, int], positions: tuple[int, int]
) -> list[Collective]:
    """Lists a program's collectives, those that move the most first.

    Args:
      program: compiled.
      mesh: axis -> size, in the order of the mesh.
      positions: (frames, joints) of a clip, by which activations are recognised.
    """
    found: dict[tuple, Collective] = {}
    for computation, instruction, times in program.executed():
        kind = instruction.opcode.removesuffix("-start")
        if kind not in KINDS:
            continue
        channel = instruction.attribute("channel_id") or instruction.name
        one = channel, instruction.source, _groups_text(instruction)
        operands = [computation.instructions[name] for name in instruction.operands]
        shapes = [operand.shape for operand in operands]
        if kind in ("all-gather", "all-to-all") and not instruction.opcode.endswith("-start"):
            shapes = list(instruction.shapes)
        elif kind == "all-gather":
            shapes = list(instruction.shapes[len(instruction.shapes) // 2 :])
        group, axes = _group(instruction, mesh)
        if group < 2:
            continue
        if computation.name.startswith("all-reduce-scatter"):  # TPU's fusion of a sum and a slice.
            kind = "reduce-scatter"
        largest = max(shapes, key=lambda shape: shape.bytes)
        found[one] = Collective(
            kind,
            f"{largest.dtype}[{','.join(map(str, largest.dims))}]",
            len(shapes),
            sum(shape.bytes for shape in shapes),
            times,
            group,
            axes,
            _content(kind, instruction.source, [shape.dims for shape in shapes], axes, positions),
            _short(instruction.source),
        )
    return sorted(found.values(), key=lambda c: c.sent_bytes, reverse=True)


def _short(source: str) -> str:
    """Names the traced operation inside the model; the first one where several were merged."""
    source = source.removeprefix("combined(").partition(":")[0]
    source = re.sub(r"^jit\(\w+\)/", "", source)
    backward = "transpose" in source
    source = re.sub(r"(transpose\()?jvp\((\w*)\)\)?/?", "", source)
    source = re.sub(r"(while/)?body/(closed_call/)?", "", source)
    return f"backward {source}" if backward else source


def _content(
    kind: str,
    source: str,
    dims: list[tuple[int, ...]],
    axes: tuple[str, ...],
    positions: tuple[int, int],
) -> str:
    """Says what is moved, from its place in the program, its arrays and the mesh axes crossed."""
    if source.startswith("state.params"):
        return "parameters"
    frames, joints = positions
    if all(not shape for shape in dims):
        return "scalars"
    largest = max(dims, key=lambda shape: int(np.prod(shape)))
    on_the_grid = (frames in largest and joints in largest) or frames * joints in largest
    # Work in the scan is divided into chunks of its own, whatever their shape.
    in_the_scan = "scan._scan" in source and source.count("while") >= 2
    if kind in ("all-reduce", "reduce-scatter") and not on_the_grid:
        # Clips are split over data and fsdp; only what belongs to all of them is summed there.
        sums_clips = not {"data", "fsdp"}.isdisjoint(axes)
        return "gradients" if sums_clips or not in_the_scan else "activations"
    if on_the_grid or in_the_scan:
        return "activations"
    return "parameters" if kind == "all-gather" else "activations"


def _groups_text(instruction: Instruction) -> str:
    """Returns the text from the groups of devices to the next attribute."""
    _, _, groups = instruction.rest.partition("replica_groups=")
    return re.split(r", (?!device_ids=\()\w+=", groups)[0]


def _group(instruction: Instruction, mesh: Mapping[str, int]) -> tuple[int, tuple[str, ...]]:
    """Returns how many devices take part together and the mesh axes they are spread over."""
    total = int(np.prod(list(mesh.values())))
    pairs = instruction.attribute("source_target_pairs")
    if pairs:
        ids = np.array(re.findall(r"\d+", pairs), int).reshape(-1, 2)
        moved = {axis for pair in ids for axis in _differs(pair, mesh)}
        size = int(np.prod([mesh[axis] for axis in moved])) if moved else 1
        return size, tuple(axis for axis in mesh if axis in moved)
    group = first_group(_groups_text(instruction) or "{}", total)
    for count in range(1, len(mesh) + 1):
        for axes in itertools.combinations([a for a in mesh if mesh[a] > 1], count):
            if set(group) == set(_spread(axes, mesh)):
                return len(group), axes
    return len(group), ()


def _differs(pair: np.ndarray, mesh: Mapping[str, int]) -> list[str]:
    here, there = (np.unravel_index(device, tuple(mesh.values())) for device in pair)
    return [axis for axis, a, b in zip(mesh, here, there, strict=True) if a != b]


def _spread(axes: tuple[str, ...], mesh: Mapping[str, int]) -> np.ndarray:
    """Lists the devices that share the first one's place on all other axes."""
    grid = np.arange(int(np.prod(list(mesh.values())))).reshape(tuple(mesh.values()))
    return grid[tuple(slice(None) if axis in axes else 0 for axis in mesh)].ravel()


def first_group(text: str, total: int) -> list[int]:
    """Reads the first group of devices from the text after `replica_groups=`.

    `{{0,1},{2,3}}` lists them, `[2,4]<=[4,2]T(1,0)` cuts a transposed count of all devices into
    rows, `mesh['a'=2,'b'=4] {'b'}` names axes of a mesh, whose devices may be in an order of their
    own, `mesh[...], device_ids=([4,2]T(1,0)) {'b'}`; `{}` is all devices.
    """
    named = re.match(
        r"mesh\[(.*?)\](?:,\s*device_ids=\(\[([\d,]+)\](?:T\(([\d,]+)\))?\))?\s*\{(.*?)\}", text
    )
    if named:
        sizes = {name: int(size) for name, size in re.findall(r"'(\w+)'=(\d+)", named.group(1))}
        places = _spread(tuple(re.findall(r"'(\w+)'", named.group(4))), sizes)
        return _counted(total, named.group(2), named.group(3))[places].tolist()
    rows = re.match(r"\[([\d,]+)\]<=\[([\d,]+)\](?:\s*T\(([\d,]+)\))?", text)
    if rows:
        ids = _counted(total, rows.group(2), rows.group(3))
        return ids.reshape(_numbers(rows.group(1)))[0].ravel().tolist()
    first = re.match(r"\{\{([\d,]+)\}", text)
    return _numbers(first.group(1)) if first else list(range(total))


def _counted(total: int, dims: str | None, order: str | None) -> np.ndarray:
    """Lists all devices in the order of a transposed grid."""
    ids = np.arange(total).reshape(_numbers(dims) if dims else total)
    return (ids.transpose(_numbers(order)) if order else ids).ravel()


def _numbers(text: str) -> list[int]:
    return [int(x) for x in text.split(",")]
