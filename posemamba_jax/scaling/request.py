"""Reads and checks the command line of the scaling report; refusals say what would fit."""

import argparse
import dataclasses
import math
import re
from collections.abc import Mapping, Sequence

from posemamba_jax.config import load_config
from posemamba_jax.config.schema import Config, MeshConfig
from posemamba_jax.errors import UserError
from posemamba_jax.scaling.chips import CHIPS, Topology, parse_topology

AXES = ("data", "fsdp", "tensor")


@dataclasses.dataclass(frozen=True)
class Request:
    """This describes the report to make.

    Attributes:
      config: its mesh and batch fit the devices.
      topology: the slice to compile for; None for virtual devices.
      virtual_devices: how many to run on; None for a slice.
      largest: chips at which the scaling curves end, 0 for none.
      compile_at: numbers of chips at which the curves are compiled, None for all.
      steps: to run on virtual devices.
      out: folder for the JSON and the plot.
      notes: what was decided for the user.
    """

    config: Config
    topology: Topology | None
    virtual_devices: int | None
    largest: int
    compile_at: frozenset[int] | None
    steps: int
    out: str
    notes: tuple[str, ...]


def parse_request(argv: Sequence[str]) -> Request:
    """Reads the command line; options that are not the report's own are the configuration's.

    Raises:
      UserError: an unknown topology, an impossible mesh, a batch that cannot be divided, or
        anything that `load_config` refuses.
    """
    parser = argparse.ArgumentParser(
        prog="python -m posemamba_jax.scaling",
        description="Compiles the training step for a slice of TPUs that need not be there and "
        "reports memory, work, communication and how it scales.",
        epilog="Keys of the configuration are options too: --model.remat block.",
        allow_abbrev=False,
        exit_on_error=False,
    )
    parser.add_argument("--topology", help=f"CHIP:SHAPE, such as v5e:16x16; {', '.join(CHIPS)}")
    parser.add_argument("--virtual-devices", type=int, help="run on this many CPU devices instead")
    parser.add_argument("--mesh", default="", help="such as data=64,fsdp=4; the rest goes to data")
    parser.add_argument("--implementation", help="of the scan; the default is the chip's")
    parser.add_argument("--largest", type=int, default=256, help="last size of the scaling curves")
    parser.add_argument(
        "--compile-at", default="", help="chips to compile the curves at: 1,16,256, or all"
    )
    parser.add_argument("--steps", type=int, default=3, help="to run on virtual devices")
    parser.add_argument("--out", default="runs/scaling", help="folder of the JSON and the plot")
    try:
        args, rest = parser.parse_known_args(list(argv))
    except argparse.ArgumentError as error:
        raise UserError(str(error)) from None
    if (args.topology is None) == (args.virtual_devices is None):
        raise UserError("give --topology CHIP:SHAPE, such as v5e:16x16, or --virtual-devices N")
    topology = parse_topology(args.topology) if args.topology else None
    devices = topology.devices if topology else _at_least_one(args.virtual_devices, "--virtual-")
    options = list(rest)
    if args.implementation:
        options += ["--model.implementation", args.implementation]
    config = load_config(options, prog=parser.prog)
    config = dataclasses.replace(config, mesh=parse_mesh(args.mesh, config.mesh, devices))
    given = any(option.partition("=")[0] == "--train.batch_size" for option in rest)
    config, notes = fill_batch(config, given)
    return Request(
        config=config,
        topology=topology,
        virtual_devices=args.virtual_devices,
        largest=args.largest,
        compile_at=_sizes(args.compile_at, topology),
        steps=_at_least_one(args.steps, "--steps"),
        out=args.out,
        notes=notes,
    )


def _at_least_one(value: int, name: str) -> int:
    if value < 1:
        name = "--virtual-devices" if name == "--virtual-" else name
        raise UserError(f"{name}: {value}, must be at least 1")
    return value


def _sizes(text: str, topology: Topology | None) -> frozenset[int] | None:
    if text == "all":
        return None
    try:
        sizes = {int(part) for part in text.split(",") if part}
    except ValueError:
        raise UserError(
            f"--compile-at: expected numbers of chips such as 1,16,256, or all, got {text!r}"
        ) from None
    return frozenset(sizes or ({1, topology.chips, 256} if topology else ()))


def parse_mesh(text: str, base: MeshConfig, devices: int) -> MeshConfig:
    """Reads `data=64,fsdp=4` over the configuration's mesh.

    Raises:
      UserError: an unknown axis, or sizes whose product is not the number of devices; says
        which would do.
    """
    sizes = {axis: getattr(base, axis) for axis in AXES}
    named = {}
    for part in filter(None, text.split(",")):
        axis, _, size = (piece.strip() for piece in part.partition("="))
        if axis not in AXES or not re.fullmatch("[0-9]{1,9}", size) or int(size) < 1:
            raise UserError(
                f"--mesh: expected sizes such as data=64,fsdp=4, axes {', '.join(AXES)}, "
                f"got {part!r}"
            )
        named[axis] = int(size)
    sizes.update(named)
    if named and "data" not in named:
        sizes["data"] = -1
    rest = sizes["fsdp"] * sizes["tensor"]
    if sizes["data"] == -1 and devices % rest == 0:
        sizes["data"] = devices // rest
    if math.prod(sizes.values()) != devices:
        wanted = ",".join(f"{axis}={size}" for axis, size in sizes.items() if size != -1)
        raise UserError(
            f"--mesh: {wanted} does not multiply to {devices} devices; these do: "
            + "; ".join(map(mesh_text, meshes_that_fit(sizes, devices)))
        )
    return MeshConfig(**sizes)


def meshes_that_fit(wanted: Mapping[str, int], devices: int) -> list[dict[str, int]]:
    """Lists up to three meshes of that many devices, those nearest to what was wanted first."""
    divisors = [d for d in range(1, devices + 1) if devices % d == 0]
    fitting = [
        {"data": devices // fsdp // tensor, "fsdp": fsdp, "tensor": tensor}
        for fsdp in divisors
        for tensor in divisors
        if devices % (fsdp * tensor) == 0
    ]

    def distance(mesh: dict[str, int]) -> tuple[int, float]:
        asked = {axis: size for axis, size in wanted.items() if size != -1}
        changed = [axis for axis in asked if mesh[axis] != asked[axis]]
        return len(changed), sum(abs(math.log(mesh[axis] / asked[axis])) for axis in changed)

    return sorted(fitting, key=distance)[:3]


def mesh_text(mesh: Mapping[str, int]) -> str:
    """Writes a mesh as `--mesh` takes it, without axes of size one."""
    return ",".join(f"{axis}={size}" for axis, size in mesh.items() if size > 1) or "data=1"


def fill_batch(config: Config, given: bool) -> tuple[Config, tuple[str, ...]]:
    """Gives every device a clip where a configuration that is for fewer devices would not.

    Args:
      config: with its mesh.
      given: whether the batch was set for this report; then it stays.

    Raises:
      UserError: the batch cannot be divided; says which can.
    """
    ways = config.mesh.data * config.mesh.fsdp * config.train.accumulate
    batch = config.train.batch_size
    if batch < ways and not given:
        config = dataclasses.replace(
            config, train=dataclasses.replace(config.train, batch_size=ways)
        )
        note = (
            f"one clip per device and part, {ways} in a batch, instead of the configuration's "
            f"{batch}, which cannot be divided; --train.batch_size sets another"
        )
        return config, (note,)
    if batch % ways:
        fits = sorted({max(1, batch // ways) * ways, (batch // ways + 1) * ways})
        raise UserError(
            f"train.batch_size: {batch} clips cannot be divided into {ways} equal parts (data x "
            f"fsdp x accumulate); {' or '.join(map(str, fits))} can"
        )
    return config, ()
