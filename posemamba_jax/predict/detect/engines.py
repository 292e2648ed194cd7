"""Runs the two pose networks on batches of images: by JAX, or by LiteRT on a CPU."""

import dataclasses
import importlib.util
import os
import threading
from collections.abc import Callable
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np

from posemamba_jax.errors import UserError
from posemamba_jax.predict.detect import graph
from posemamba_jax.predict.detect.weights import Network, Networks

EngineName = Literal["jax", "litert"]

# uint8 images (batch, side, side, 3) -> the network's outputs, float32 arrays of that batch.
Run = Callable[[np.ndarray], list[np.ndarray]]


@dataclasses.dataclass(frozen=True)
class Engine:
    """The two networks ready to run; both functions may be called by several threads at once.

    detect: letterboxed images (batch, 224, 224, 3) to what `detector.decode` takes.
    locate: regions (batch, 256, 256, 3) to what `landmarks.decode` takes.
    batch_size: images that are best given at once.
    workers: threads that are best used at once.
    """

    detect: Run
    locate: Run
    batch_size: int
    workers: int


def make_engine(networks: Networks, name: EngineName = "jax") -> Engine:
    """Returns the networks on the default device of JAX, or on the CPU by LiteRT.

    Raises:
      UserError: LiteRT is asked for but not installed.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    if name == "litert":
        check_litert()
        make, batch_size, workers = _by_litert, 1, cores
    elif jax.default_backend() == "cpu":
        make, batch_size, workers = _by_jax, 1, min(cores, 4)
    else:
        make, batch_size, workers = _by_jax, 16, 2
    # The detector takes [-1, 1], the landmark networks take [0, 1].
    detect = make(networks.detector, 1 / 127.5, -1.0)
    locate = make(networks.landmarks, 1 / 255, 0.0)
    return Engine(_in_batches(detect, batch_size), _in_batches(locate, batch_size),
                  batch_size, max(workers, 1))  # fmt: skip


def check_litert() -> None:
    """Raises UserError where LiteRT is not installed."""
    if importlib.util.find_spec("ai_edge_litert") is None:
        raise UserError(
            "--detector litert: LiteRT is not installed; pip install 'posemamba-jax[litert]' (or "
            "ai-edge-litert), or leave the option out to use JAX"
        )


def _in_batches(run: Run, batch_size: int) -> Run:
    """Returns the same function, always called with `batch_size` images, so that one shape is
    compiled.
    """

    def run_all(images: np.ndarray) -> list[np.ndarray]:
        parts = []
        for i in range(0, len(images), batch_size):
            part = images[i : i + batch_size]
            missing = batch_size - len(part)
            full = np.concatenate([part, np.repeat(part[-1:], missing, 0)]) if missing else part
            parts.append([output[: len(part)] for output in run(full)])
        return [np.concatenate(outputs) for outputs in zip(*parts, strict=True)]

    return run_all


def _by_jax(network: Network, scale: float, shift: float) -> Run:
    apply, weights = graph.build(network.graph, network.outputs)
    weights = jax.device_put(weights)

    @jax.jit
    def compiled(weights, images):
        with jax.default_matmul_precision("highest"):
            return apply(weights, images.astype(jnp.float32) * scale + shift)

    return lambda images: [np.asarray(output) for output in compiled(weights, images)]


def _by_litert(network: Network, scale: float, shift: float) -> Run:
    from ai_edge_litert.interpreter import Interpreter

    own = threading.local()

    def interpreter():
        # An interpreter serves one thread; each thread makes its own.
        if not hasattr(own, "interpreter"):
            own.interpreter = Interpreter(model_content=network.content, num_threads=1)
            own.interpreter.allocate_tensors()
        return own.interpreter

    (source,) = network.graph.inputs

    def run(images: np.ndarray) -> list[np.ndarray]:
        running = interpreter()
        results = []
        for image in images:
            running.set_tensor(source, (image[None] * np.float32(scale) + np.float32(shift)))
            running.invoke()
            results.append([running.get_tensor(i).copy() for i in network.outputs])
        return [np.concatenate(outputs) for outputs in zip(*results, strict=True)]

    return run
