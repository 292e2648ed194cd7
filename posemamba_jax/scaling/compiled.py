"""Compiles the training step for a slice of chips that need not be there, and reads the result."""

import dataclasses
import importlib.util
import os
import re
import time
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import topologies
from selective_scan_jax.backends import default_implementation
from selective_scan_jax.target import lowering_for, target_of

from posemamba_jax.config.schema import Config
from posemamba_jax.errors import UserError
from posemamba_jax.model import mesh as mesh_lib
from posemamba_jax.model.summary import layer_costs, totals
from posemamba_jax.scaling import hlo
from posemamba_jax.scaling.chips import CHIPS, Topology
from posemamba_jax.scaling.collectives import Collective, find_collectives
from posemamba_jax.scaling.counting import Work, count_work
from posemamba_jax.scaling.kernels import Kernel, find_kernels
from posemamba_jax.training.state import abstract_state
from posemamba_jax.training.step import abstract_batch, make_train_step

# Passes of the backward through a layer, in forward passes: by activations and by parameters.
BACKWARD = 2


@dataclasses.dataclass(frozen=True)
class Memory:
    """This holds the bytes that a step needs on one device.

    Attributes:
      params: the model's parameters.
      optimizer: the optimiser's moments, and the running average where one is kept.
      batch: the step's input.
      temporary: what the compiler reserves for activations and everything else in between.
      program: the code.
      peak: all of it at once, with padding.
    """

    params: int
    optimizer: int
    batch: int
    temporary: int
    program: int
    peak: int


@dataclasses.dataclass(frozen=True)
class Step:
    """This describes the training step on a mesh, as compiled or, where it does not fit, refused.

    Attributes:
      mesh: axis -> size.
      batch: clips in a step, over all devices.
      accumulate: parts of the batch that run one after another.
      implementation: of the scan.
      memory: per device; of a step that does not fit, `temporary` is what it would need.
      fits: whether the compiler found room.
      xla_flops, xla_bytes: XLA's cost analysis per device, in which a loop's body counts once and
        a custom kernel as nothing; None where it does not fit.
      work: per device; None where it does not fit.
      kernels: calls of the scan's kernels, of which `work` has the memory traffic alone.
      collectives: those that move the most first.
      unknown_loops: loops that were counted once because their length is not in the program.
      model_flops: per device, of the model's multiply-adds, two each, three passes.
      compile_seconds: XLA's time.
    """

    mesh: dict[str, int]
    batch: int
    accumulate: int
    implementation: str
    memory: Memory
    fits: bool
    xla_flops: float | None
    xla_bytes: float | None
    work: Work | None
    kernels: list[Kernel]
    collectives: list[Collective]
    unknown_loops: list[str]
    model_flops: float
    compile_seconds: float

    @property
    def devices(self) -> int:
        return int(np.prod(list(self.mesh.values())))


def topology_devices(topology: Topology) -> list[Any]:
    """Returns descriptions of a slice's devices, in the order of a mesh.

    Raises:
      UserError: libtpu, the compiler for TPUs, is not installed or does not know the slice.
    """
    if importlib.util.find_spec("libtpu") is None:
        raise UserError(
            "compiling for TPUs needs libtpu (no TPU): pip install libtpu; "
            "--virtual-devices N works without"
        )
    # There is no TPU to ask for its surroundings, and another process may be compiling too.
    for name, value in (
        ("TPU_SKIP_MDS_QUERY", "1"),
        ("ALLOW_MULTIPLE_LIBTPU_LOAD", "1"),
        ("TPU_ACCELERATOR_TYPE", "v5litepod-1"),
        ("TPU_WORKER_HOSTNAMES", "localhost"),
        ("TPU_MIN_LOG_LEVEL", "3"),
        ("TPU_STDERR_LOG_LEVEL", "3"),
    ):
        os.environ.setdefault(name, value)
    # Without this some versions of libtpu refuse a single chip, as less than a host has.
    host = {"chips_per_host_bounds": (1, 1, 1)} if topology.chips == 1 else {}
    try:
        found = topologies.get_topology_desc(platform="tpu", topology_name=topology.name, **host)
    except jax.errors.JaxRuntimeError as error:
        reason = " ".join(str(error).split())
        raise UserError(
            f"--topology: libtpu does not know {topology.name} ({reason}); known chips are "
            f"{', '.join(CHIPS)}"
        ) from None
    return list(found.devices)


def compile_for_topology(config: Config, topology: Topology) -> Step:
    """Compiles the training step of a configuration for a slice.

    Args:
      config: `mesh` and `train.batch_size` must fit the slice.
      topology: a slice of a kind of chip.

    Raises:
      UserError: the mesh or batch does not fit the number of devices, or see `topology_devices`.
    """
    return compile_step(config, topology_devices(topology))[0]


def compile_step(config: Config, devices: Sequence[Any]) -> tuple[Step, jax.stages.Compiled | None]:
    """Compiles the training step for devices that may be descriptions only.

    Returns:
      What became of the step, and the step to run where it fits and the devices are there.

    Raises:
      ConfigError: the mesh or the batch does not fit them.
    """
    mesh = mesh_lib.make_mesh(config.mesh, list(devices))
    mesh_lib.check_batch(config.train.batch_size, config.train.accumulate, mesh)
    target = target_of(devices[0])
    state, batch = abstract_state(config, mesh), abstract_batch(config, mesh)
    with lowering_for(target):
        implementation = config.model.implementation or default_implementation()
        step = make_train_step(config, mesh, steps_per_epoch=1000, total_steps=100_000)
        lowered = step.lower(state, batch)
    start = time.monotonic()
    try:
        compiled = lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        needed = bytes_needed(str(error))
        if needed is None:
            raise
        compiled = None
    seconds = time.monotonic() - start

    held = Memory(
        params=device_bytes(state.params),
        optimizer=device_bytes(state.opt_state) + device_bytes(state.ema),
        batch=device_bytes(batch),
        temporary=0,
        program=0,
        peak=0,
    )
    shared: dict[str, Any] = dict(
        mesh=dict(mesh.shape),
        batch=config.train.batch_size,
        accumulate=config.train.accumulate,
        implementation=implementation,
        compile_seconds=seconds,
        model_flops=_model_flops(config, mesh.devices.size),
    )
    if compiled is None:
        peak = held.params + held.optimizer + held.batch + needed
        refused = Step(
            **shared, fits=False, xla_flops=None, xla_bytes=None, work=None, kernels=[],
            collectives=[], unknown_loops=[],
            memory=dataclasses.replace(held, temporary=needed, peak=peak),
        )  # fmt: skip
        return refused, None
    program = hlo.parse(compiled.as_text())
    found = compiled.memory_analysis()
    costs = compiled.cost_analysis() or {}
    step = Step(
        **shared,
        fits=True,
        xla_flops=costs.get("flops"),
        xla_bytes=costs.get("bytes accessed"),
        work=count_work(program),
        kernels=find_kernels(program),
        collectives=find_collectives(
            program, dict(mesh.shape), (config.data.clip_len, config.model.num_joints)
        ),
        unknown_loops=program.unknown_loops,
        memory=dataclasses.replace(
            held,
            temporary=found.temp_size_in_bytes,
            program=found.generated_code_size_in_bytes,
            peak=found.argument_size_in_bytes
            + found.output_size_in_bytes
            - found.alias_size_in_bytes
            + found.temp_size_in_bytes
            + found.generated_code_size_in_bytes,
        ),
    )
    return step, compiled


def bytes_needed(message: str) -> int | None:
    """Reads from an out-of-memory error how many bytes were needed; None for other errors."""
    if "RESOURCE_EXHAUSTED" not in message:
        return None
    found = re.search(r"\(([\d.]+)([KMGT])\) exceeds", message) or re.search(
        r"[Uu]sed ([\d.]+)([KMGT]) of", message
    )
    return round(float(found.group(1)) * 1024 ** " KMGT".index(found.group(2))) if found else 0


def device_bytes(tree: Any) -> int:
    """Counts the bytes that one device holds of abstract arrays with shardings, without padding."""
    return sum(
        int(np.prod(leaf.sharding.shard_shape(leaf.shape))) * leaf.dtype.itemsize
        for leaf in jax.tree.leaves(tree)
    )


def _model_flops(config: Config, devices: int) -> float:
    """Counts one device's share of the model's arithmetic in a step, from its layers' shapes."""
    costs = layer_costs(config.model, config.data.clip_len)
    return 2 * (1 + BACKWARD) * config.train.batch_size / devices * totals(costs)[1]


def gathered(collectives: Sequence[Collective]) -> dict[str, int]:
    """Adds up what all-gathers collect in a step: content -> bytes."""
    found: dict[str, int] = {}
    for collective in collectives:
        if collective.kind == "all-gather":
            size = collective.bytes * collective.times
            found[collective.content] = found.get(collective.content, 0) + size
    return found


def with_mesh(config: Config, mesh: Mapping[str, int], batch: int, accumulate: int) -> Config:
    """Returns the configuration with another mesh and another batch."""
    return dataclasses.replace(
        config,
        mesh=dataclasses.replace(config.mesh, **mesh),
        train=dataclasses.replace(config.train, batch_size=batch, accumulate=accumulate),
    )
