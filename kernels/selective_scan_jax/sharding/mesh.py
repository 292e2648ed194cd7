"""A scan split over the devices of a mesh, by batch, channels or length.

The compiler cannot look into a kernel, so it would gather a kernel's operands on every device. Here
every device runs the implementation on its own part inside `shard_map`, forward and backward. What
travels are sums of gradients: those of arrays that channels share (B, C, the input of the step
projection) over the channels' axis, those of parameters over the batch's, each of them once.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.sharding import AbstractMesh, Mesh, PartitionSpec

_INSTEAD = {
    "batch": "`batch` may name fewer mesh axes.",
    "length": "Steps of size zero at the end change nothing.",
    "channels": "Without `channels` they stay whole on every device.",
    "groups": "Without `channels` they stay whole on every device.",
}


@dataclasses.dataclass(frozen=True)
class ScanSharding:
    """How a scan is split over a mesh. Hashable; every array keeps its whole shape outside.

    Mesh axes that are not named here hold copies of the same work.

    Attributes:
      mesh: the devices.
      batch: mesh axes that the batch is split over, the first one slowest.
      channels: mesh axis that the channels are split over. Groups of B and C are split with them,
        so their number must divide by it too, unless there is one group, which all share.
      length: mesh axis that the length of a `selective_scan` is split over, in order.

    Raises:
      ValueError: the mesh has no such axis, or one is named twice.
    """

    mesh: Mesh | AbstractMesh
    batch: tuple[str, ...] = ()
    channels: str | None = None
    length: str | None = None

    def __post_init__(self):
        batch = (self.batch,) if isinstance(self.batch, str) else tuple(self.batch)
        object.__setattr__(self, "batch", batch)
        for axis in self.axes:
            if axis not in self.mesh.shape:
                raise ValueError(
                    f"sharding: the mesh has the axes {', '.join(self.mesh.shape)}, not {axis!r}"
                )
            if self.axes.count(axis) > 1:
                raise ValueError(f"sharding: the mesh axis {axis!r} is named more than once")

    @property
    def axes(self) -> tuple[str, ...]:
        """Lists all mesh axes that something is split over."""
        return (*self.batch, *(a for a in (self.channels, self.length) if a is not None))

    def inside(self) -> ScanSharding | None:
        """Returns what is left to split inside a `jax.shard_map` over some of the axes; None inside
        of one over all of the mesh.

        There, arrays are a device's parts along these axes already, and sums over them are the
        surrounding function's to take.
        """
        mesh = jax.sharding.get_abstract_mesh()
        manual = mesh.manual_axes
        if not set(manual) & set(self.axes):
            return self
        rest = dataclasses.replace(
            self,
            mesh=mesh,
            batch=tuple(axis for axis in self.batch if axis not in manual),
            channels=None if self.channels in manual else self.channels,
            length=None if self.length in manual else self.length,
        )
        # Over axes that nothing is split over, a kernel still has to be told that it runs on each.
        return rest if set(mesh.axis_names) - set(manual) else None

    def batch_split_outside(self) -> tuple[str, ...]:
        """Lists the axes over which a surrounding `jax.shard_map` has split the batch."""
        manual = jax.sharding.get_abstract_mesh().manual_axes
        return tuple(axis for axis in self.batch if axis in manual)

    def ways(self, dim: str) -> int:
        """Counts the devices over which `dim` (batch, channels or length) is split."""
        axes = self.batch if dim == "batch" else (getattr(self, dim),)
        return math.prod(self.mesh.shape[axis] for axis in axes if axis is not None)

    def check(self, sizes: dict[str, int]) -> None:
        """Refuses sizes that do not split evenly.

        Args:
          sizes: of the dimensions by name, `groups` among them for a scan that has groups.

        Raises:
          ValueError: with the dimension, its mesh axes and what would fit.
        """
        for dim in ("batch", "length", "channels", "groups"):
            ways = self.ways("channels" if dim == "groups" else dim)
            size = sizes.get(dim, 0)
            if size % ways == 0 or (dim == "groups" and size == 1):
                continue
            near = [n * ways for n in (size // ways, size // ways + 1) if n]
            near = [1, *near] if dim == "groups" else near
            raise ValueError(
                f"sharding: {dim}={size} does not split over {ways} devices; "
                f"{' or '.join(map(str, near))} would. {_INSTEAD[dim]}"
            )


def specs(sharding: ScanSharding, dims: dict[str, tuple[str, ...]], sizes: dict[str, int]):
    """Makes the PartitionSpec of every array from the names of its dimensions."""
    groups = sharding.channels if sizes.get("groups") != 1 else None
    axes = {
        "batch": sharding.batch or None,
        "channels": sharding.channels,
        "groups": groups,
        "length": sharding.length,
    }
    return {name: PartitionSpec(*map(axes.get, names)) for name, names in dims.items()}


def partition(run: Callable, vjp: Callable, sharding: ScanSharding, in_specs, out_specs):
    """Makes `run` and `vjp`, which work on a device's part of the arrays, work on whole arrays.

    Args:
      run: takes a named tuple of operands to a tuple of outputs.
      vjp: takes the operands to the outputs and to a pytree that maps the outputs' gradients to
        (the operands' gradients,).
      in_specs: a PartitionSpec per operand, in the operands' type.
      out_specs: a tuple of PartitionSpec. An output that is whole along an axis must be the same
        on all devices along it.

    Returns:
      The two functions; the second sums each gradient over the axes that its array is whole along.
    """
    axes = sharding.axes
    # Axes that no array is split over hold copies; a surrounding shard_map has taken its own.
    manual = getattr(sharding.mesh, "manual_axes", ())
    names = {axis for axis in sharding.mesh.axis_names if axis not in manual}

    def over_mesh(f, in_specs, out_specs):
        # The check of what varies over the mesh has no rules for kernels.
        return jax.shard_map(
            f,
            mesh=sharding.mesh,
            in_specs=in_specs,
            out_specs=out_specs,
            axis_names=names,
            check_vma=False,
        )

    def whole_vjp(operands):
        # What a device keeps for its backward pass only that device reads: a row of an array that
        # has one row per device.
        kept_rows = PartitionSpec(axes)
        structure = None

        def forward(operands):
            nonlocal structure
            outputs, pull_back = vjp(operands)
            kept, structure = jax.tree.flatten(pull_back)
            return outputs, [jnp.asarray(x)[None] for x in kept]

        def backward(kept, grads):
            pull_back = jax.tree.unflatten(structure, [x[0] for x in kept])
            (grads,) = pull_back(grads)
            summed = (_sum_over(axes, *pair) for pair in zip(grads, in_specs, strict=True))
            return type(in_specs)(*summed)

        def pull_back(kept, grads):
            return (over_mesh(backward, (kept_rows, out_specs), in_specs)(kept, grads),)

        outputs, kept = over_mesh(forward, (in_specs,), (out_specs, kept_rows))(operands)
        return outputs, jax.tree_util.Partial(pull_back, kept)

    return over_mesh(run, (in_specs,), out_specs), whole_vjp


def _sum_over(axes, grad, spec):
    """Sums the gradient in float32 over the axes that `spec` does not split."""
    split = jax.tree.leaves(tuple(spec))
    rest = tuple(axis for axis in axes if axis not in split)
    if grad is None or not rest:
        return grad
    return jax.lax.psum(grad.astype(jnp.float32), rest).astype(grad.dtype)
