"""The scan as Pallas kernels for NVIDIA GPUs from Hopper on, by way of Mosaic GPU.

See docs/pallas_gpu.md. This module can be imported wherever JAX can; the kernels, which need a
recent one, are imported when they are called.
"""

from __future__ import annotations

import jax

from selective_scan_jax.grid import ScanOrder
from selective_scan_jax.target import current_target, interpreting

MINIMUM_JAX = (0, 11)
HOPPER = 90


def unavailable_reason() -> str | None:
    """Why the kernels cannot run here, or None if they can."""
    if jax.__version_info__ < MINIMUM_JAX:
        return f"needs jax 0.11 or later, this is {jax.__version__}"
    capability = current_target().compute_capability
    if not interpreting() and capability is not None and capability < HOPPER:
        return (
            "needs a GPU of compute capability 9.0 (Hopper) or later, this one has "
            f"{capability // 10}.{capability % 10}"
        )
    return None


def interpreter():
    """What `interpret=` of a kernel takes: the interpreter, its memory full of NaN, or False."""
    if not interpreting():
        return False
    from jax.experimental.pallas import mosaic_gpu as plgpu

    return plgpu.InterpretGPUParams(uninitialized_memory="nan")


def selective_scan(
    u, delta, A, B, C, D, delta_bias, z, initial_state, *, delta_softplus: bool, reverse: bool
):
    """See `selective_scan_jax.selective_scan`; returns (y, last_state)."""
    from selective_scan_jax import pallas_gpu_selective

    arrays = (u, delta, A, B, C, D, delta_bias, z, initial_state)
    return pallas_gpu_selective.selective_scan(arrays, delta_softplus, reverse, interpreter())


def cross_scan(x, dt, B, C, dt_weight, dt_bias, A, D, *, order: ScanOrder):
    """See `selective_scan_jax.cross_scan`."""
    from selective_scan_jax import pallas_gpu_cross

    arrays = (x, dt, B, C, dt_weight, dt_bias, A, D)
    return pallas_gpu_cross.cross_scan(arrays, order, interpreter())
