"""Several processes that train one model: how they find each other, agree, and end.

With one process nothing here does anything. `start` comes before anything else that uses JAX.
"""

import contextlib
import os
import sys
import traceback
from collections.abc import Callable, Iterator

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from posemamba_jax.config.schema import DistributedConfig
from posemamba_jax.errors import UserError
from posemamba_jax.training.signals import Stopped, StopRequest

# Steps between asking the other processes whether to stop and looking at their answer, so that the
# host need not wait for the device.
_LAG = 2


def start(config: DistributedConfig) -> None:
    """Joins this process to the others that the configuration speaks of, if any.

    JAX waits `config.timeout` seconds for all of them and then ends the process from within, so
    what is being waited for is said before.

    Raises:
      UserError: the address cannot be used, or there is no cluster that JAX knows.
    """
    if not (config.auto or config.coordinator) or jax.distributed.is_initialized():
        return
    # The training loop has its own way to agree on a stop, which Ctrl-C goes too.
    jax.config.update("jax_enable_preemption_service", False)
    if jax.config.jax_cpu_collectives_implementation is None:
        jax.config.update("jax_cpu_collectives_implementation", "gloo")
    try:
        if config.auto:
            jax.distributed.initialize(initialization_timeout=config.timeout)
            return
        print(
            f"process {config.process_id} of {config.num_processes}: joining the others at "
            f"{config.coordinator}, for at most {config.timeout} s",
            file=sys.stderr,
            flush=True,
        )
        jax.distributed.initialize(
            config.coordinator,
            config.num_processes,
            config.process_id,
            initialization_timeout=config.timeout,
            cluster_detection_method="deactivate",
        )
    except (ValueError, RuntimeError) as error:
        advice = (
            "distributed.auto: no cluster that JAX knows (TPU pod, SLURM, Open MPI, Kubernetes); "
            "give distributed.coordinator, num_processes and process_id, or leave it out to train "
            "in one process"
            if config.auto
            else f"distributed.coordinator: {config.coordinator}: the processes cannot be joined"
        )
        raise UserError(f"{advice} ({' '.join(str(error).split())[:300]})") from error


def is_first() -> bool:
    """Returns true on the process that writes logs, pictures and reports."""
    return jax.process_index() == 0


@contextlib.contextmanager
def all_or_none(what: str) -> Iterator[None]:
    """Runs work that every process has to finish before any goes on.

    Raises:
      UserError: another process failed; what this one raises goes before.
    """
    try:
        yield
    except BaseException:
        _gather(0)
        raise
    failed = np.flatnonzero(_gather(1) == 0)
    if failed.size:
        raise UserError(
            f"{what}: process {', '.join(map(str, failed))} failed; what it printed says why"
        )


def from_first(value: float) -> float:
    """Returns a number as the first process has it, so that all decide alike."""
    if jax.process_count() == 1:
        return value
    return float(multihost_utils.broadcast_one_to_all(np.float64(value)))


@contextlib.contextmanager
def leaving_at_once() -> Iterator[None]:
    """Ends this process at once where an error would leave it waiting for the others.

    They find its connections closed and end too. With one process errors pass as they are.
    """
    try:
        yield
    except BaseException as error:
        if jax.process_count() == 1:
            raise
        text, code = _last_words(error)
        print(text or traceback.format_exc(), file=sys.stderr)
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


class AgreedStop:
    """A stop request that every process sees at the same step.

    Args:
      request: this process's own.
    """

    def __init__(self, request: StopRequest):
        self._request = request
        self._alone = jax.process_count() == 1
        self._exit_code: int | None = None
        self._asked: list[jax.Array] = []
        self._ask = None if self._alone else _make_largest()

    @property
    def exit_code(self) -> int | None:
        """The program's exit code once a stop was requested, else None."""
        return self._request.exit_code if self._alone else self._exit_code

    def __bool__(self) -> bool:
        return self.exit_code is not None

    def poll(self) -> None:
        """Asks the others; to be called once a step by all. What they said shows a little later."""
        if self._ask is None:
            return
        self._asked.append(self._ask(self._request.exit_code or 0))
        if len(self._asked) > _LAG:
            self._exit_code = self._exit_code or int(self._asked.pop(0)) or None

    def check(self) -> None:
        """Asks the others and waits for their answer.

        Raises:
          Stopped: one of them was requested to stop.
        """
        if self._ask is not None:
            self._exit_code = (
                self._exit_code or int(self._ask(self._request.exit_code or 0)) or None
            )
        if self:
            raise Stopped


def _gather(value: int) -> np.ndarray:
    """Collects the number of every process."""
    if jax.process_count() == 1:
        return np.array([value])
    return np.asarray(multihost_utils.process_allgather(np.int32(value))).reshape(-1)


def _make_largest() -> Callable[[int], jax.Array]:
    """Makes a function that gives the largest of the processes' numbers without waiting for it."""
    mesh = Mesh(np.array(jax.devices()), ("all",))
    apart = NamedSharding(mesh, PartitionSpec("all"))
    largest = jax.jit(jnp.max, out_shardings=NamedSharding(mesh, PartitionSpec()))

    def ask(number: int) -> jax.Array:
        mine = np.full(jax.local_device_count(), number, np.int32)
        return largest(jax.make_array_from_process_local_data(apart, mine))

    return ask


def _last_words(error: BaseException) -> tuple[str | None, int]:
    """Decides what to print of an error (None for its traceback), and the exit code."""
    me = f"process {jax.process_index()}"
    if isinstance(error, UserError):
        return f"error: {me}: {error}", 2
    if isinstance(error, KeyboardInterrupt):
        return f"{me}: interrupted", 130
    if isinstance(error, SystemExit):
        return f"{me}: stopped", error.code if isinstance(error.code, int) else 1
    if isinstance(error, jax.errors.JaxRuntimeError):
        return (
            f"error: {me} lost the others, or its device ({' '.join(str(error).split())[:200]}); "
            "start all processes again with --resume",
            1,
        )
    return None, 1
