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
import sys
import tempfile
import types
import unittest.mock
from collections.abc import Iterator, Sequence

import jax
import jax.custom_batching
import numpy as np

from selective_scan_jax.target import current_target, interpreting
from selective_scan_jax.triton import emulation, installation
from selective_scan_jax.triton.layout import Layout

# The modules of the kernels, after those that they import.
MODULES = tuple(
    f"selective_scan_jax.triton.{x}" for x in ("primitives", "segments", "forward", "backward")
)
MINIMUM_CAPABILITY = 80  # Ampere
INTERPRETER = "emulation"  # or "triton"


def unavailable_reason() -> str | None:
    """Says why the kernels cannot run for the current target, or None if they can."""
    if interpreting():
        for package in ("triton", "torch") if INTERPRETER == "triton" else ("triton",):
            if importlib.util.find_spec(package) is None:
                return f"its interpreter needs {package}: pip install {package}"
        return None
    try:
        import jax_triton  # noqa: F401
    except ImportError as error:
        return f'needs jax-triton ({error}): pip install "jax[cuda12]" jax-triton'
    capability = current_target().compute_capability
    if capability is not None and capability < MINIMUM_CAPABILITY:
        return (
            f"needs a GPU of compute capability {MINIMUM_CAPABILITY / 10} (Ampere) or later, this "
            f"one has {capability / 10}"
        )
    return installation.mismatch(capability)


@dataclasses.dataclass(frozen=True)
class Launch:
    """What is needed to compile a kernel as a call does: its arguments' types and its layout."""

    kernel: str
    dtypes: tuple[np.dtype, ...]
    programs: int
    layout: Layout

    @property
    def warps(self) -> int:
        return max(self.layout.lanes // 32, 1)


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
    batch: int,
    layout: Layout,
) -> list[jax.Array]:
    """Calls a kernel with the inputs' and outputs' pointers and its layout."""
    programs = batch * layout.programs_per_element
    dtypes = tuple(np.dtype(x.dtype) for x in (*inputs, *outputs))
    call = Launch(kernel, dtypes, programs, layout)
    if (launches := _launches.get()) is not None:
        launches.append(call)
    if interpreting():
        run = functools.partial(_interpret, call, tuple(outputs))
        return jax.pure_callback(run, list(outputs), *inputs, vmap_method="sequential")
    import jax_triton

    installation.write_for_assembler()
    fused = {"enable_fp_fusion": True}
    if "out_type" in inspect.signature(jax_triton.triton_call).parameters:  # since 0.4
        options = {"out_type": list(outputs), "backend_options": fused}
    else:
        options = {"out_shape": list(outputs), **fused}
    run = functools.partial(
        jax_triton.triton_call,
        kernel=kernel_function(kernel),
        grid=(programs, 1, 1),
        name=kernel,
        num_warps=call.warps,
        num_stages=1,
        compute_capability=current_target().compute_capability,
        **options,
        L=layout,
    )
    # jax-triton has no rule for jax.vmap: one call after the other. The kernels have a batch axis.
    return jax.custom_batching.sequential_vmap(run)(*inputs)


def kernel_function(kernel: str):
    """Returns the `triton.jit` function of that name."""
    modules = map(importlib.import_module, MODULES)
    return next(found for m in modules if (found := getattr(m, kernel, None)) is not None)


@functools.cache
def _interpreted_kernels() -> types.ModuleType:
    """Returns the kernels' modules loaded once more, their functions for Triton's interpreter."""
    import triton

    loaded = {}
    with triton.knobs.runtime.scope(), unittest.mock.patch.dict(sys.modules):
        triton.knobs.runtime.interpret = True
        for name in MODULES:
            spec = importlib.util.find_spec(name)
            module = importlib.util.module_from_spec(spec)
            sys.modules[name] = module  # what the next modules import from
            spec.loader.exec_module(module)
            loaded |= vars(module)
    return types.SimpleNamespace(**loaded)


def _interpret(call: Launch, outputs, *inputs) -> list[np.ndarray]:
    """Runs a kernel in an interpreter; what it does not write is NaN."""
    results = [np.full(x.shape, math.nan, x.dtype) for x in outputs]
    arrays = [*(np.array(x) for x in inputs), *results]
    if INTERPRETER == "triton":
        tensors = [_tensor(x) for x in arrays]
        getattr(_interpreted_kernels(), call.kernel)[(call.programs,)](*tensors, L=call.layout)
        return results
    function, layout = kernel_function(call.kernel), call.layout
    # Programs of one direction, part and segment go through the same loops and branches.
    indices = np.arange(call.programs).reshape(
        -1, layout.programs_per_element // layout.blocks, layout.blocks
    )
    together = indices.swapaxes(0, 1).reshape(indices.shape[1], -1)
    module = sys.modules[function.fn.__module__]
    emulation.run(module, call.kernel, together, arrays, {"L": layout})
    return results


def _tensor(array: np.ndarray):
    """Returns a tensor over the array's memory."""
    import torch

    if array.dtype.name == "bfloat16":
        return torch.from_numpy(array.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(array)


def compile_kernel(call: Launch, capability: int) -> dict[str, str | bytes]:
    """Returns what the compiler makes of a kernel, by stage (ttir to cubin); the GPU need not be
    here.
    """
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    function = kernel_function(call.kernel)
    names = {"float32": "*fp32", "bfloat16": "*bf16", "float16": "*fp16", "int32": "*i32"}
    pointers = [names[dtype.name] for dtype in call.dtypes]
    signature = dict(zip(function.arg_names, pointers, strict=False)) | {"L": "constexpr"}
    aligned = {(i,): [["tt.divisibility", 16]] for i in range(len(pointers))}
    source = ASTSource(function, signature, constexprs={"L": call.layout}, attrs=aligned)
    options = {"num_warps": call.warps, "num_stages": 1, "enable_fp_fusion": True}
    target = GPUTarget("cuda", capability, 32)
    # jax-triton 0.3 empties the variable that names Triton's cache.
    with triton.knobs.cache.scope(), tempfile.TemporaryDirectory() as folder:
        triton.knobs.cache.dir = folder
        return dict(triton.compile(source, target=target, options=options).asm)
