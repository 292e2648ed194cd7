"""The scan as Pallas kernels for NVIDIA GPUs from Hopper on, by way of Mosaic GPU.

See docs/mosaic_gpu.md. This module can be imported wherever JAX can; the kernels, which need a
recent one, are imported when they are called.
"""

from __future__ import annotations

import jax

from selective_scan_jax.operands import CrossScanOperands, ScanOperands
from selective_scan_jax.order import ScanOrder
from selective_scan_jax.target import current_target, interpreting

MINIMUM_JAX = (0, 11)
HOPPER = 90


def unavailable_reason() -> str | None:
    """Says why the kernels cannot run here, or None if they can."""
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
    """Returns a kernel's `interpret=`: the interpreter, its memory full of NaN, or False."""
    if not interpreting():
        return False
    from jax.experimental.pallas import mosaic_gpu as plgpu

    return plgpu.InterpretGPUParams(uninitialized_memory="nan")


def selective_scan(operands: ScanOperands, *, delta_softplus: bool, reverse: bool):
    """Implements `selective_scan_jax.selective_scan` and returns (y, last_state)."""
    from selective_scan_jax.mosaic_gpu import selective

    return selective.selective_scan(operands, delta_softplus, reverse, interpreter())


def cross_scan(operands: CrossScanOperands, *, order: ScanOrder):
    """Implements `selective_scan_jax.cross_scan`."""
    from selective_scan_jax.mosaic_gpu import cross

    return cross.cross_scan(operands, order, interpreter())
