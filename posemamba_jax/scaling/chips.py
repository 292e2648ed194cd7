"""Describes accelerators by their published figures, and the slices they come in."""

import dataclasses
import math
import re

from posemamba_jax.errors import UserError

GIB = 2**30


@dataclasses.dataclass(frozen=True)
class Chip:
    """This describes one generation of TPU; its figures are per chip.

    The vector unit's speed is not in the vendor's tables. It follows from the layout of the cores:
    8 x 128 lanes with 2 (v4) or 4 arithmetic units each, at the clock that makes the matrix units,
    of 128 x 128 (v6e: 256 x 256) multiply-adds a cycle, reach the published peak. The clock, at
    which a core issues its bundles of instructions, follows from it.

    Attributes:
      name: as in a topology's name.
      bf16_flops: peak matrix FLOP/s in bfloat16.
      vector_ops: peak float32 element operations per second of the vector units.
      cores: how many tensor cores it has.
      vector_units: arithmetic units per lane of a core.
      hbm_bytes: memory.
      hbm_bandwidth: bytes per second.
      ici_bandwidth: bytes per second that all of a chip's links send together.
      torus_axes: dimensions of the network; each has two links.
      wrap: an axis of the slice is a ring where its length is a multiple of this.
      largest: chips along each axis of the largest slice.
      devices: how many devices JAX shows for a chip.
      source: the page that has the figures.
    """

    name: str
    bf16_flops: float
    vector_ops: float
    cores: int
    vector_units: int
    hbm_bytes: int
    hbm_bandwidth: float
    ici_bandwidth: float
    torus_axes: int
    wrap: int
    largest: tuple[int, ...]
    devices: int
    source: str

    @property
    def clock(self) -> float:
        """Cycles per second of a core."""
        return self.vector_ops / (self.cores * _LANES * self.vector_units)


# Of a core's vector unit.
_LANES = 8 * 128

_CLOUD = "https://cloud.google.com/tpu/docs/"

# Time that one collective takes however few bytes it moves, per step around its ring: about a
# microsecond a hop (https://jax-ml.github.io/scaling-book/sharding).
HOP_SECONDS = 1e-6

# name, bf16, vector, cores, units, HBM, HBM/s, ICI/s, axes, wrap, largest, devices
CHIPS = {
    chip.name: chip
    for chip in (
        Chip(
            "v4", 275e12, 4.30e12, 2, 2, 32 * GIB, 1200e9, 300e9, 3, 4, (16, 16, 16), 2,
            _CLOUD + "v4",
        ),
        Chip(
            "v5e", 197e12, 6.16e12, 1, 4, 16 * GIB, 819e9, 200e9, 2, 16, (16, 16), 1,
            _CLOUD + "v5e",
        ),
        Chip(
            "v5p", 459e12, 14.3e12, 2, 4, 95 * GIB, 2765e9, 600e9, 3, 4, (16, 16, 24), 1,
            _CLOUD + "v5p",
        ),
        Chip(
            "v6e", 918e12, 7.17e12, 1, 4, 32 * GIB, 1600e9, 400e9, 2, 16, (16, 16), 1,
            _CLOUD + "v6e",
        ),
    )
}  # fmt: skip

# Slices of 1 to 256 chips that can be rented, by the number of the network's dimensions.
_SLICES = {
    2: ("1x1", "2x2", "2x4", "4x4", "4x8", "8x8", "8x16", "16x16"),
    3: ("1x1x1", "2x2x1", "2x2x2", "2x2x4", "2x4x4", "4x4x4", "4x4x8", "4x8x8"),
}


@dataclasses.dataclass(frozen=True)
class Topology:
    """This describes a slice: a kind of chip and how many stand along each axis."""

    chip: Chip
    shape: tuple[int, ...]

    @property
    def name(self) -> str:
        return f"{self.chip.name}:{'x'.join(map(str, self.shape))}"

    @property
    def chips(self) -> int:
        return math.prod(self.shape)

    @property
    def devices(self) -> int:
        """The number of devices that a mesh over the slice has to multiply to."""
        return self.chips * self.chip.devices

    @property
    def links(self) -> int:
        """Links that every chip can send on at once: two along a ring, one along an open axis."""
        return sum(
            0 if length == 1 else 2 if length % self.chip.wrap == 0 else 1 for length in self.shape
        )

    @property
    def send_bandwidth(self) -> float:
        """Bytes per second that a device can send inside the slice."""
        per_link = self.chip.ici_bandwidth / (2 * self.chip.torus_axes)
        return per_link * self.links / self.chip.devices


def parse_topology(text: str) -> Topology:
    """Reads names such as `v5e:16x16`.

    Raises:
      UserError: an unknown chip or a shape that there is no slice of; says what there is.
    """
    examples = ", ".join(f"{name}:{_SLICES[chip.torus_axes][3]}" for name, chip in CHIPS.items())
    found = re.fullmatch(r"([a-z0-9]+):(\d+(?:x\d+)*)", text.strip().lower())
    if not found:
        raise UserError(
            f"--topology: {text!r} is not CHIP:SHAPE; for example {examples}, "
            f"with a chip of {', '.join(CHIPS)}"
        )
    name, shape = found.group(1), tuple(map(int, found.group(2).split("x")))
    if name not in CHIPS:
        raise UserError(
            f"--topology: {text}: unknown chip {name}; known are {', '.join(CHIPS)}, "
            f"for example {examples}"
        )
    chip = CHIPS[name]
    largest = "x".join(map(str, chip.largest))
    fits = all(
        1 <= length <= most
        for length, most in zip(sorted(shape), sorted(chip.largest), strict=False)
    )
    even = all(length % 2 == 0 for length in shape if length > 1)
    if len(shape) != chip.torus_axes or not fits or not even:
        raise UserError(
            f"--topology: there is no {text}; a slice of {name} has {chip.torus_axes} even numbers "
            f"up to {largest}: " + ", ".join(f"{name}:{s}" for s in _SLICES[chip.torus_axes])
        )
    return Topology(chip, shape)


def slices(chip: Chip, most: int) -> list[Topology]:
    """Lists the slices of 1, 4, 8, 16, ... chips, up to `most`."""
    found = (parse_topology(f"{chip.name}:{shape}") for shape in _SLICES[chip.torus_axes])
    return [topology for topology in found if topology.chips <= most]
