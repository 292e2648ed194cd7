"""The scan as native vector code on a CPU, called by XLA through its foreign-function interface.

The kernels (native/scan.cc) are compiled when the package is installed, for several instruction
sets into one plain shared library; the best that the machine can run is taken when it is loaded.
See docs/cpu_kernel.md. Two environment variables, read at that moment, are for tests and
benchmarks: SELECTIVE_SCAN_CPU_LEVEL names an instruction set, SELECTIVE_SCAN_CPU_THREADS limits the
threads.
"""

from __future__ import annotations

import ctypes
import functools
import logging
import os
import pathlib
import re

import jax
import jax.numpy as jnp
import numpy as np

from selective_scan_jax.operands import CrossScanOperands, ScanOperands
from selective_scan_jax.order import ScanOrder

_DIRECTORY = pathlib.Path(__file__).parent
LIBRARY = "_cpu_scan.so"
BUILD_FAILURE = "_cpu_scan.failed"  # written by setup.py instead of the library
CHUNK = 64  # kChunk of native/scan.h

_HANDLERS = ("cross_forward", "cross_backward", "forward", "backward") + tuple(
    f"{layer}_{way}" for layer in ("norm", "conv", "gelu") for way in ("forward", "backward")
)
_log = logging.getLogger(__name__)


def unavailable_reason() -> str | None:
    """Says why the native kernels cannot run here, or None if they can."""
    return _load()[1]


def levels() -> tuple[str, ...]:
    """Lists the instruction sets that this machine can run, best first; empty without the
    library.
    """
    library, _ = _load()
    return () if library is None else _levels_of(library)


def level() -> str:
    """Returns the instruction set in use."""
    return _require().selective_scan_cpu_level().decode()


def set_level(name: str) -> None:
    """Uses another instruction set from now on, in this process.

    Raises:
      ValueError: this machine cannot run it.
    """
    if not _require().selective_scan_cpu_set_level(name.encode()):
        raise ValueError(f"level: expected one of {', '.join(levels())}, got {name!r}")


def set_threads(limit: int) -> None:
    """Limits the threads of a call from now on, in this process; 0 for as many as XLA has."""
    _require().selective_scan_cpu_set_threads(limit)


def exp2(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Computes 2**x of a float32 vector as the kernels do: for |x| < 125, and for any x."""
    x = np.ascontiguousarray(x, np.float32)
    bounded, full = np.empty_like(x), np.empty_like(x)
    pointer = ctypes.POINTER(ctypes.c_float)
    _require().selective_scan_cpu_exp2(
        *(a.ctypes.data_as(pointer) for a in (x, bounded, full)), ctypes.c_int64(x.size)
    )
    return bounded, full


def _levels_of(library: ctypes.CDLL) -> tuple[str, ...]:
    return tuple(library.selective_scan_cpu_levels().decode().split())


def _require() -> ctypes.CDLL:
    library, reason = _load()
    if library is None:
        raise RuntimeError(reason)
    return library


@functools.cache
def _load() -> tuple[ctypes.CDLL | None, str | None]:
    """Loads the library and registers its handlers; the second value says why that failed."""
    library, reason = _open()
    if reason is not None:
        _log.warning("the native CPU kernels are not used: %s", reason)
        return None, reason
    for name in _HANDLERS:
        symbol = f"selective_scan_cpu_{name}"
        jax.ffi.register_ffi_target(
            symbol, jax.ffi.pycapsule(getattr(library, symbol)), platform="cpu"
        )
    return library, None


def _open() -> tuple[ctypes.CDLL | None, str | None]:
    named = os.environ.get("SELECTIVE_SCAN_CPU_LIBRARY")
    path = pathlib.Path(named or _DIRECTORY / LIBRARY)
    if not path.exists():
        failure = _DIRECTORY / BUILD_FAILURE
        known = named is None and failure.exists()
        why = failure.read_text().strip() if known else f"there is no {path}"
        return None, f"{why} (with a C++17 compiler at hand, install the package again)"
    try:
        library = ctypes.CDLL(str(path))
    except OSError as error:
        return None, f"{path} cannot be loaded: {error}"
    missing = [name for name in _HANDLERS if not hasattr(library, f"selective_scan_cpu_{name}")]
    if missing:
        return None, f"{path} is of an earlier version of this package; build or install it again"
    built_for, runs = _interface_versions(library)
    if built_for[0] != runs[0] or built_for[1] > runs[1]:
        built, here = (".".join(map(str, v)) for v in (built_for, runs))
        return None, (
            f"they were built for version {built} of XLA's foreign-function interface, the "
            f"installed jaxlib has {here} (install this package again with --no-build-isolation)"
        )
    library.selective_scan_cpu_levels.restype = ctypes.c_char_p
    library.selective_scan_cpu_level.restype = ctypes.c_char_p
    library.selective_scan_cpu_set_level.restype = ctypes.c_bool
    library.selective_scan_cpu_set_threads.argtypes = [ctypes.c_int64]
    name = os.environ.get("SELECTIVE_SCAN_CPU_LEVEL")
    if name and not library.selective_scan_cpu_set_level(name.encode()):
        can = ", ".join(_levels_of(library))
        return None, f"SELECTIVE_SCAN_CPU_LEVEL={name}: this machine can run {can}"
    threads = os.environ.get("SELECTIVE_SCAN_CPU_THREADS")
    if threads:
        if not threads.isdecimal():
            return None, f"SELECTIVE_SCAN_CPU_THREADS={threads}: expected a number of threads"
        library.selective_scan_cpu_set_threads(int(threads))
    return library, None


def _interface_versions(library: ctypes.CDLL) -> tuple[tuple[int, int], tuple[int, int]]:
    """Returns (major, minor) of XLA's interface that the library was built for, and jaxlib's own.

    Registering a handler that is newer than jaxlib would break JAX's CPU backend altogether, so
    this is found out before.
    """
    header = pathlib.Path(jax.ffi.include_dir()) / "xla" / "ffi" / "api" / "c_api.h"
    text = header.read_text() if header.exists() else ""
    found = [re.search(rf"#define XLA_FFI_API_{part} (\d+)", text) for part in ("MAJOR", "MINOR")]
    version = library.selective_scan_cpu_interface_version()
    built_for = divmod(version, 1000)
    runs = tuple(int(m[1]) for m in found) if all(found) else built_for
    return built_for, runs


def call_kernel(name: str, shapes: list[tuple[int, ...]], arrays, **attributes):
    """Calls a handler; absent arrays (None) travel as arrays of shape (0,)."""
    _require()
    axes = _varying_axes(arrays)
    arrays = _vary(axes, [jnp.zeros(0, jnp.float32) if a is None else a for a in arrays])
    outputs = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]
    call = jax.ffi.ffi_call(f"selective_scan_cpu_{name}", outputs, vmap_method="sequential")
    return _vary(axes, call(*arrays, **attributes))


def _varying_axes(arrays) -> frozenset[str]:
    """Returns the mesh axes over which any of the arrays varies inside shard_map."""
    return frozenset().union(
        *(jax.typeof(a).manual_axis_type.varying for a in arrays if a is not None)
    )


def _vary(axes: frozenset[str], arrays):
    """Marks all arrays as varying over `axes`."""
    missing = [() if a is None else axes - _varying_axes([a]) for a in arrays]
    return tuple(
        jax.lax.pcast(a, tuple(m), to="varying") if m else a
        for a, m in zip(arrays, missing, strict=True)
    )


def _shape(x) -> tuple[int, ...]:
    return (0,) if x is None else x.shape


def prepare(operands):
    """Converts operands to float32; inside shard_map all then vary over the same mesh axes.

    That is done outside the custom_vjp, so that the gradient of an array which is the same on all
    devices becomes a sum over the devices.
    """
    arrays, structure = jax.tree.flatten(operands)  # An absent one is part of the structure.
    arrays = [a.astype(jnp.float32) for a in arrays]
    return structure.unflatten(_vary(_varying_axes(arrays), arrays))


def selective_scan(operands: ScanOperands, *, delta_softplus: bool, reverse: bool):
    """Implements `selective_scan_jax.selective_scan` and returns (y, last_state)."""
    y, last_state = _selective_scan(prepare(operands), delta_softplus, reverse)
    return y.astype(operands.u.dtype), last_state


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2))
def _selective_scan(operands, softplus, reverse):
    return _selective_forward(operands, softplus, reverse, (0,))[:2]


def _selective_forward(operands, softplus, reverse, boundaries):
    u = operands.u
    shapes = [u.shape, (u.shape[0], *operands.A.shape), boundaries]
    return call_kernel("forward", shapes, operands, softplus=softplus, reverse=reverse)


def _selective_scan_fwd(operands, softplus, reverse):
    batch, length, channels = operands.u.shape
    groups, states = operands.B.shape[2:]
    chunks = -(-length // CHUNK)
    boundaries = (batch, groups, chunks, states, channels // groups)
    y, last_state, boundaries = _selective_forward(operands, softplus, reverse, boundaries)
    return (y, last_state), (operands, boundaries)


def _selective_scan_bwd(softplus, reverse, saved, grads):
    operands, boundaries = saved
    shapes = [_shape(a) for a in operands]
    inputs = (*operands, boundaries, *grads)
    out = call_kernel("backward", shapes, inputs, softplus=softplus, reverse=reverse)
    gradients = (None if a is None else g for a, g in zip(operands, out, strict=True))
    return (ScanOperands(*gradients),)


_selective_scan.defvjp(_selective_scan_fwd, _selective_scan_bwd)


def cross_scan(operands: CrossScanOperands, *, order: ScanOrder):
    """Implements `selective_scan_jax.cross_scan`."""
    return _cross_scan(prepare(operands), order)


def _attributes(order: ScanOrder, frames: int, joints: int):
    """Writes the order as the handlers take it: each path as the members of native/scan.h's
    Path.
    """
    strides = [direction.strides(frames, joints) for direction in order.directions]
    paths = [(s.start, s.inner_stride, s.inner, s.outer_stride) for s in strides]
    limbs = [order.takes_limb_term(k) for k in range(len(order.directions))]
    return {
        "paths": np.array(paths, np.int64).reshape(-1),
        "takes_limbs": np.array(limbs, np.int64),
        "limb_walk": np.array(order.limb_walk or (), np.int64),
    }


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def _cross_scan(operands, order):
    return _cross_forward(operands, order, (0,))[0]


def _cross_forward(operands, order, boundaries):
    x = operands.x
    attributes = _attributes(order, *x.shape[1:3])
    return call_kernel("cross_forward", [x.shape, boundaries], operands, **attributes)


def _cross_scan_fwd(operands, order):
    batch, frames, joints, channels = operands.x.shape
    directions, states = operands.B.shape[3:]
    boundaries = (batch, directions, -(-frames * joints // CHUNK), states, channels)
    y, boundaries = _cross_forward(operands, order, boundaries)
    return y, (operands, boundaries)


def _cross_scan_bwd(order, saved, dy):
    operands, boundaries = saved
    attributes = _attributes(order, *operands.x.shape[1:3])
    gradients = call_kernel(
        "cross_backward",
        [a.shape for a in operands],
        (*operands, boundaries, dy),
        limb_gradient=order.limb_gradient == "exact",
        **attributes,
    )
    return (CrossScanOperands(*gradients),)


_cross_scan.defvjp(_cross_scan_fwd, _cross_scan_bwd)
