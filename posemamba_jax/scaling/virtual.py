"""Runs the sharded training step on virtual CPU devices and compares it with one device."""

import dataclasses
import time
from collections.abc import Callable

import jax
import numpy as np

from posemamba_jax.config.schema import Config, MeshConfig
from posemamba_jax.errors import UserError
from posemamba_jax.model import mesh as mesh_lib
from posemamba_jax.scaling.compiled import Step, compile_step
from posemamba_jax.training.state import make_state
from posemamba_jax.training.step import put_batch

# Sums of another order round differently; more than this is a mistake in the sharding.
AGREES = 1e-5


@dataclasses.dataclass(frozen=True)
class Comparison:
    """This holds the losses of a few steps on a mesh and on one device.

    Attributes:
      step: as compiled for the mesh.
      losses: on the mesh.
      one_device: on one.
      seconds: wall-clock time of a step on the mesh; the virtual devices share one processor.
    """

    step: Step
    losses: list[float]
    one_device: list[float]
    seconds: float

    @property
    def difference(self) -> float:
        """Largest relative difference."""
        return max(abs(a - b) / abs(b) for a, b in zip(self.losses, self.one_device, strict=True))

    @property
    def agrees(self) -> bool:
        return self.difference <= AGREES


def compare(config: Config, devices: int, steps: int, say: Callable[[str], None]) -> Comparison:
    """Takes the same steps on a mesh of virtual devices and on one.

    Args:
      config: mesh and batch fit `devices`.
      devices: to run on; JAX must not have started with fewer.
      steps: to take.
      say: told before everything that takes a while.

    Raises:
      UserError: JAX has started with fewer devices.
    """
    there = jax.devices("cpu")
    if len(there) < devices:
        raise UserError(
            f"--virtual-devices: JAX has started with {len(there)} devices; start another process"
        )
    say(f"compiling for {devices} virtual devices")
    step, losses, seconds = _run(config, there[:devices], steps, say)
    say("compiling for one device")
    alone = dataclasses.replace(config, mesh=MeshConfig(data=1))
    _, one_device, _ = _run(alone, there[:1], steps, say)
    return Comparison(step, losses, one_device, seconds)


def _run(
    config: Config, devices: list, steps: int, say: Callable[[str], None]
) -> tuple[Step, list[float], float]:
    """Takes a few steps on random poses; returns what was compiled, losses, seconds of a step."""
    mesh = mesh_lib.make_mesh(config.mesh, devices)
    step, train_step = compile_step(config, devices)
    state = make_state(config, mesh)
    rng = np.random.default_rng(config.seed)
    shape = (2, config.train.batch_size, config.data.clip_len, config.model.num_joints, 3)
    losses, seconds = [], 0.0
    for number in range(steps):
        poses = rng.normal(0, 0.3, shape).astype(np.float32)
        batch = put_batch({"poses_2d": poses[0], "poses_3d": poses[1]}, mesh)
        start = time.perf_counter()
        state, metrics = train_step(state, batch)
        losses.append(float(metrics["loss"]))
        seconds = time.perf_counter() - start
        where = f"{len(devices)} devices" if len(devices) > 1 else "1 device"
        say(f"{where}, step {number + 1} of {steps}: loss {losses[-1]:.6f}, {seconds:.1f} s")
    return step, losses, seconds
