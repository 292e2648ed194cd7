"""The device mesh, and which axis of which parameter is split over it.

The mesh has three axes. The batch is split over `data` and `fsdp`, parameters and optimiser state
over `fsdp` and `tensor`. On one device all three have size one and nothing is split.
"""

import dataclasses
import re
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from selective_scan_jax import ScanSharding

from posemamba_jax.errors import ConfigError
from posemamba_jax.limits import Section, number

AXES = ("data", "fsdp", "tensor")

# Logical axes of parameters -> mesh axis. `width` is C, `inner` E, `hidden` the MLP's, `state` N.
LOGICAL_AXES = {"width": "fsdp", "state": "fsdp", "inner": "tensor", "hidden": "tensor"}

# Parameter (end of its path) -> logical names of its last axes; axes before those, such as the
# depth of stacked blocks, and parameters not listed are whole on every device.
RULES = (
    (r"scan/in_proj/kernel", ("width", "inner")),
    (r"scan/conv/kernel", ("inner",)),
    (r"scan/conv/bias", ("inner",)),
    (r"scan/x_proj", (None, "inner")),
    (r"scan/dt_weight", ("inner", None)),
    (r"scan/dt_bias", ("inner",)),
    (r"scan/A_log", ("inner", "state")),
    (r"scan/D", ("inner",)),
    (r"scan/out_norm/(scale|bias)", ("inner",)),
    (r"scan/out_proj/kernel", ("inner", "width")),
    (r"mlp/fc1/kernel", ("width", "hidden")),
    (r"mlp/fc1/bias", ("hidden",)),
    (r"mlp/fc2/kernel", ("hidden", "width")),
    (r"(spatial|temporal)_pos", ("width",)),
)


LARGEST_MESH = 10**6


@dataclasses.dataclass(frozen=True)
class MeshConfig(Section, path="mesh"):
    """These keys give the devices along each mesh axis; their product must be all devices.

    Attributes:
      data: the batch is split over it; -1 takes the devices that the other axes leave.
      fsdp: parameters and optimiser state are split over it, and the batch too.
      tensor: the inner channels of the blocks are split over it.
    """

    data: int = number(-1, at_least=-1, at_most=LARGEST_MESH)
    fsdp: int = number(1, at_least=1, at_most=LARGEST_MESH)
    tensor: int = number(1, at_least=1, at_most=LARGEST_MESH)

    def problems(self) -> Iterator[tuple[str, str]]:
        if self.data == 0:
            yield "data", "0, must be -1 or at least 1"


def make_mesh(config: MeshConfig, devices: list[Any] | None = None) -> Mesh:
    """Arranges the devices (all of them unless given) along the axes of the configuration.

    Raises:
      ConfigError: the sizes do not multiply to the number of devices; the text says what would.
    """
    devices = jax.devices() if devices is None else devices
    count, rest = len(devices), config.fsdp * config.tensor
    if count % rest or (config.data != -1 and config.data * rest != count):
        data = f"data={config.data}, " if config.data != -1 else ""
        fits = f"data={count // rest} fits" if count % rest == 0 else f"data={count} alone fits"
        raise ConfigError(
            f"mesh: {data}fsdp={config.fsdp}, tensor={config.tensor} do not multiply to the "
            f"{count} device{'s' if count > 1 else ''} here; {fits}, and data=-1 takes what is left"
        )
    shape = (count // rest, config.fsdp, config.tensor)
    return Mesh(np.asarray(devices).reshape(shape), AXES, axis_types=(AxisType.Auto,) * 3)


def check_batch(batch_size: int, accumulate: int, mesh: Mesh) -> None:
    """Refuses a batch whose parts cannot be split evenly over the mesh.

    Raises:
      ConfigError: with the nearest batch sizes that fit.
    """
    ways = mesh.shape["data"] * mesh.shape["fsdp"] * accumulate
    if batch_size % ways:
        fits = sorted({max(1, batch_size // ways) * ways, (batch_size // ways + 1) * ways})
        raise ConfigError(
            f"train.batch_size: {batch_size} clips cannot be split into {ways} equal parts "
            f"(data x fsdp x accumulate); {' or '.join(map(str, fits))} can"
        )


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Splits the leading axis of batches over `data` and `fsdp`."""
    return NamedSharding(mesh, PartitionSpec(("data", "fsdp")))


def batch_share(mesh: Mesh) -> tuple[int, int]:
    """Returns (index, count): this process feeds the index-th of count equal stretches of a batch.

    Processes that an axis spans which does not split the batch (`tensor`) feed the same stretch.

    Raises:
      ConfigError: the stretches of two processes overlap without being the same.
    """
    ways = mesh.shape["data"] * mesh.shape["fsdp"]
    parts: dict[int, set[int]] = {}
    for device, (part,) in batch_sharding(mesh).devices_indices_map((ways,)).items():
        parts.setdefault(device.process_index, set()).update(range(*part.indices(ways)))
    shares = sorted({tuple(sorted(share)) for share in parts.values()})
    mine = tuple(sorted(parts[jax.process_index()]))
    if [part for share in shares for part in share] != list(range(ways)):
        local = mesh.devices.size // len(parts)
        raise ConfigError(
            f"mesh.tensor: {mesh.shape['tensor']} must divide or be a multiple of the devices of "
            f"one process, {local}, so that every process has an equal part of the batch"
        )
    return shares.index(mine), len(shares)


def scan_sharding(mesh: Mesh, channels: int) -> ScanSharding | None:
    """Decides how a scan of that many channels is split: the batch as above, the channels over
    `tensor`.

    Channels that `tensor` does not divide stay whole. None for a single device.
    """
    if mesh.size == 1:
        return None
    split = mesh.shape["tensor"] > 1 and channels % mesh.shape["tensor"] == 0
    return ScanSharding(mesh, ("data", "fsdp"), "tensor" if split else None)


def replicated(mesh: Mesh) -> NamedSharding:
    """Puts the whole array on every device."""
    return NamedSharding(mesh, PartitionSpec())


def state_shardings(mesh: Mesh, tree: Any) -> Any:
    """Chooses the sharding of every leaf by the rules above.

    The optimiser's moments and running averages end in the parameter's path and have its shape, so
    the same rules hold for them.

    Args:
      mesh: made by `make_mesh`.
      tree: arrays or `jax.ShapeDtypeStruct`s.
    """
    return jax.tree_util.tree_map_with_path(
        lambda path, leaf: NamedSharding(mesh, _spec(mesh, leaf_name(path), leaf.shape)), tree
    )


def shardings_in_use(mesh: Mesh, params: Any) -> Any:
    """Lays out parameters for the model to work with: gathered over `fsdp`.

    Without being told, the compiler keeps kernels split over `fsdp`, splits the model's width over
    it as well and gathers the activations instead, which are far larger than the parameters.
    """

    def gathered(path: Any, leaf: Any) -> NamedSharding:
        spec = _spec(mesh, leaf_name(path), leaf.shape)
        return NamedSharding(mesh, PartitionSpec(*(None if a == "fsdp" else a for a in spec)))

    return jax.tree_util.tree_map_with_path(gathered, params)


def leaf_name(path: Any) -> str:
    """Writes a path in a tree as text: `params/blocks/spatial/scan/D`."""
    return jax.tree_util.keystr(path, simple=True, separator="/")


def _spec(mesh: Mesh, name: str, shape: tuple[int, ...]) -> PartitionSpec:
    logical = next((axes for end, axes in RULES if re.search(rf"(^|/){end}$", name)), ())
    axes: list[str | None] = [None] * (len(shape) - len(logical))
    for size, axis in zip(shape[len(axes) :], logical, strict=True):
        mesh_axis = LOGICAL_AXES.get(axis) if axis else None
        # An axis that the mesh does not divide stays whole.
        axes.append(mesh_axis if mesh_axis and size % mesh.shape[mesh_axis] == 0 else None)
    return PartitionSpec(*axes)
