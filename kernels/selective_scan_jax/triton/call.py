"""Running a Triton kernel from JAX: on a GPU, lowered for one that is not here, or interpreted.

What differs between releases of jax-triton, and between a GPU and an interpreter, is in this file.
Interpreters run the kernels' own source on the same grid with NumPy; JAX reaches them through a
callback. There are two: `triton_emulation`, and Triton's own, which is far slower.
"""

from __future__ import annotations

import contextlib
import contextvars
import dataclasses
import functools
import importlib
import importlib.util
import inspect
import math
import tempfile
from collections.abc import Iterator, Mapping, Sequence

import jax
import jax.custom_batching
import numpy as np

from selective_scan_jax.target import current_target, interpreting
from selective_scan_jax.triton import emulation

KERNELS = "selective_scan_jax.triton.kernels"
MINIMUM_CAPABILITY = 80  # Ampere
INTERPRETER = "emulation"  # or "triton"


def unavailable_reason() -> str | None:
    """Why the kernels cannot run for the current target, or None if they can."""
    if interpreting():
        for package in ("triton", "torch") if INTERPRETER == "triton" else ("triton",):
            if importlib.util.find_spec(package) is None:
                return f"its interpreter needs {package}: pip install {package}"
        return None
    try:
        import jax_triton
    except ImportError as error:
        return f'needs jax-triton ({error}): pip install "jax[cuda12]" jax-triton'
    version = jax_triton.__version__
    if jax.__version_info__ >= (0, 12) and tuple(map(int, version.split(".")[:3])) <= (0, 4, 1):
        return (
            f"jax-triton {version} does not work with jax {jax.__version__}: needs jax before 0.12"
        )
    capability = current_target().compute_capability
    if capability is not None and capability < MINIMUM_CAPABILITY:
        return (
            f"needs a GPU of compute capability {MINIMUM_CAPABILITY / 10} (Ampere) or later, this "
            f"one has {capability / 10}"
        )
    return None


@dataclasses.dataclass(frozen=True)
class Launch:
    """What is needed to compile a kernel as a call does: its arguments' types and constants."""

    kernel: str
    dtypes: tuple[np.dtype, ...]
    grid: tuple[int, int, int]
    constants: dict[str, int]
    warps: int


_launches: contextvars.ContextVar[list[Launch] | None] = contextvars.ContextVar(
    "selective_scan_triton_launches", default=None
)


@contextlib.contextmanager
def recording() -> Iterator[list[Launch]]:
    """Collects the kernel calls of what is traced inside, for static analysis."""
    launches: list[Launch] = []
    token = _launches.set(launches)
    try:
        yield launches
    finally:
        _launches.reset(token)


def launch(
    kernel: str,
    inputs: Sequence[jax.Array],
    outputs: Sequence[jax.ShapeDtypeStruct],
    grid: tuple[int, int, int],
    constants: Mapping[str, int],
    warps: int,
) -> list[jax.Array]:
    """Calls a kernel of `triton_kernels` with the inputs' and outputs' pointers and constants."""
    if (launches := _launches.get()) is not None:
        dtypes = tuple(np.dtype(x.dtype) for x in (*inputs, *outputs))
        launches.append(Launch(kernel, dtypes, grid, dict(constants), warps))
    if interpreting():
        call = functools.partial(_interpret, kernel, tuple(outputs), grid, dict(constants))
        return jax.pure_callback(call, list(outputs), *inputs, vmap_method="sequential")
    import jax_triton

    fused = {"enable_fp_fusion": True}
    if "out_type" in inspect.signature(jax_triton.triton_call).parameters:  # since 0.4
        options = {"out_type": list(outputs), "backend_options": fused}
    else:
        options = {"out_shape": list(outputs), **fused}
    call = functools.partial(
        jax_triton.triton_call,
        kernel=getattr(importlib.import_module(KERNELS), kernel),
        grid=grid,
        name=kernel,
        num_warps=warps,
        num_stages=1,
        compute_capability=current_target().compute_capability,
        **options,
        **constants,
    )
    # jax-triton has no rule for jax.vmap: one call after the other. The kernels have a batch axis.
    return jax.custom_batching.sequential_vmap(call)(*inputs)


@functools.cache
def _interpreted_kernels():
    """The kernels' module loaded once more, its functions for the interpreter."""
    import triton

    spec = importlib.util.find_spec(KERNELS)
    module = importlib.util.module_from_spec(spec)
    with triton.knobs.runtime.scope():
        triton.knobs.runtime.interpret = True
        spec.loader.exec_module(module)
    return module


def _interpret(kernel, outputs, grid, constants, *inputs) -> list[np.ndarray]:
    """Runs a kernel in an interpreter; what it does not write is NaN."""
    results = [np.full(x.shape, math.nan, x.dtype) for x in outputs]
    arrays = [*(np.array(x) for x in inputs), *results]
    if INTERPRETER == "triton":
        tensors = [_tensor(x) for x in arrays]
        getattr(_interpreted_kernels(), kernel)[grid](*tensors, **constants)
    else:
        emulation.run(importlib.import_module(KERNELS), kernel, grid, arrays, constants)
    return results


def _tensor(array: np.ndarray):
    """A tensor over the array's memory."""
    import torch

    if array.dtype.name == "bfloat16":
        return torch.from_numpy(array.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(array)


def compile_cubin(call: Launch, capability: int) -> bytes:
    """The machine code of a kernel for a GPU that need not be here."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    function = getattr(importlib.import_module(KERNELS), call.kernel)
    names = {"float32": "*fp32", "bfloat16": "*bf16", "float16": "*fp16", "int32": "*i32"}
    pointers = [names[dtype.name] for dtype in call.dtypes]
    signature = dict(zip(function.arg_names, pointers, strict=False))
    signature |= dict.fromkeys(call.constants, "constexpr")
    aligned = {(i,): [["tt.divisibility", 16]] for i in range(len(pointers))}
    source = ASTSource(function, signature, constexprs=call.constants, attrs=aligned)
    options = {"num_warps": call.warps, "num_stages": 1, "enable_fp_fusion": True}
    target = GPUTarget("cuda", capability, 32)
    # jax-triton 0.3 empties the variable that names Triton's cache.
    with triton.knobs.cache.scope(), tempfile.TemporaryDirectory() as folder:
        triton.knobs.cache.dir = folder
        return triton.compile(source, target=target, options=options).asm["cubin"]
