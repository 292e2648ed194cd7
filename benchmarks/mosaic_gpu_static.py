"""The Mosaic GPU kernels' machine code, from the CUDA compilers, without a GPU.

usage: python benchmarks/mosaic_gpu_static.py [--capability 90] [--operators cross_scan,...]

The kernels of both operators at the reference shape (243 frames of 17 joints, 4 x 256 channels, 16
states, float32, batch 16) are lowered, with gradients, and handed to the compiler inside JAX's CUDA
plugin. That asks the driver for the compute capability and to load the result; where there is no
driver, a library that answers just these questions stands in for it, made by the C compiler at
hand. ptxas then says what registers and spills there are, and the instructions of the loops over
time are counted in its machine code. A figure is machine instructions per step and state; the loop
is named by what it does, and a warp executes them for 32 channels.

Writes benchmarks/results/mosaic_gpu_static.{json,md}, with the capability in the name if it is not
90. Needs jax 0.11 or later with its CUDA plugin
(pip install "jax[cuda12]" or "jax[cuda13]"; no GPU), a C compiler, and ptxas and nvdisasm, which
that or triton brings.
"""

from __future__ import annotations

import argparse
import collections
import ctypes
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from common import environment, table, write_results

BATCH, FRAMES, JOINTS, CHANNELS, DIRECTIONS, STATES, RANK = 16, 243, 17, 256, 4, 16, 8
OPERATORS = ("cross_scan", "selective_scan")

# Special-function units of a multiprocessor's quarter: a warp's exp keeps them this many cycles.
CYCLES_PER_EXP = 8

# What the compiler asks of a driver. Attributes 75 and 76 are the compute capability, 97 is the
# shared memory that a block may use.
DRIVER = """
#include <stdlib.h>
int cuInit(unsigned flags) { return 0; }
int cuDriverGetVersion(int *v) { *v = 13000; return 0; }
int cuDeviceGetCount(int *n) { *n = 1; return 0; }
int cuDeviceGet(int *d, int i) { *d = 0; return 0; }
int cuCtxGetDevice(int *d) { *d = 0; return 0; }
int cuCtxGetCurrent(void **c) { *c = (void *)1; return 0; }
int cuCtxSetCurrent(void *c) { return 0; }
int cuDevicePrimaryCtxRetain(void **c, int d) { *c = (void *)1; return 0; }
int cuDeviceGetAttribute(int *v, int a, int d) {
  int capability = atoi(getenv("CAPABILITY"));
  *v = a == 75 ? capability / 10 : a == 76 ? capability % 10 : a == 97 ? 232448 : 1024;
  return 0;
}
int cuModuleLoadData(void **m, const void *image) { *m = (void *)1; return 0; }
int cuModuleGetFunction(void **f, void *m, const char *name) { *f = (void *)1; return 0; }
int cuModuleUnload(void *m) { return 0; }
int cuFuncSetAttribute(void *f, int a, int v) { return 0; }
int cuGetErrorName(int e, const char **s) { *s = "no driver"; return 0; }
int cuGetErrorString(int e, const char **s) { *s = "no driver"; return 0; }
"""


# In a process of its own, which finds the stand-in for the driver when it starts.


def kernels(operator: str, capability: int) -> list[bytes]:
    """Returns the modules of an operator's kernels and its gradients', as the compiler takes
    them.
    """
    import jax
    import jax.numpy as jnp
    from jax.experimental.mosaic.gpu import core
    from selective_scan_jax import ScanOrder, Target, cross_scan, lowering_for, selective_scan

    def run(*arrays):
        if operator == "cross_scan":
            order = ScanOrder.named("limbs")
            return cross_scan(*arrays, order=order, implementation="mosaic_gpu")
        options = {"delta_softplus": True, "implementation": "mosaic_gpu"}
        return selective_scan(*arrays[:-1], delta_bias=arrays[-1], **options)

    def with_gradients(*arrays):
        y, pull_back = jax.vjp(run, *arrays)
        return pull_back(y)

    if operator == "cross_scan":
        grid, weights = (BATCH, FRAMES, JOINTS), (DIRECTIONS, CHANNELS)
        shapes = [(*grid, CHANNELS), *((*grid, DIRECTIONS, n) for n in (RANK, STATES, STATES))]
        shapes += [(*weights, RANK), weights, (*weights, STATES), weights]
    else:
        width = DIRECTIONS * CHANNELS
        u, rows = (BATCH, FRAMES * JOINTS, width), (BATCH, FRAMES * JOINTS, DIRECTIONS, STATES)
        shapes = [u, u, (width, STATES), rows, rows, (width,), (width,)]
    structs = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]
    with lowering_for(Target("gpu", compute_capability=capability)):
        jax.jit(with_gradients).trace(*structs).lower(lowering_platforms=("cuda",))
    return list(core.KNOWN_KERNELS.values())


def child(operator: str) -> None:
    """Compiles the kernels; what the compiler dumps goes where the environment says."""
    import jax  # noqa: F401  (finds the plugin's own libraries)

    plugins = [f"jax_plugins.xla_cuda{version}" for version in (13, 12)]
    plugin = next(filter(None, map(importlib.util.find_spec, plugins)))
    library = ctypes.CDLL(str(Path(plugin.origin).parent / "xla_cuda_plugin.so"))
    library.MosaicGpuCompile.restype = ctypes.c_void_p
    for module in kernels(operator, int(os.environ["CAPABILITY"])):
        if not library.MosaicGpuCompile(ctypes.c_char_p(module), ctypes.c_int(len(module))):
            sys.exit("the compiler refused a kernel")


def compile_operator(operator: str, capability: int, folder: Path) -> None:
    """Writes the PTX of an operator's kernels, and what ptxas says, to `folder`."""
    (folder / "driver.c").write_text(DRIVER)
    compiler = os.environ.get("CC", "cc")
    driver = folder / "libcuda.so.1"
    subprocess.run([compiler, "-shared", "-fPIC", "-w", folder / "driver.c", "-o", driver])
    print(f"compiling {operator}", flush=True)
    done = subprocess.run(
        [sys.executable, __file__, "--child", operator],
        env=os.environ
        | {
            "JAX_PLATFORMS": "cpu",
            "CAPABILITY": str(capability),
            "LD_LIBRARY_PATH": f"{folder}:{os.environ.get('LD_LIBRARY_PATH', '')}",
            "MOSAIC_GPU_DUMP_TO": str(folder),
            "MOSAIC_GPU_DUMP_PTX": "1",
            "MOSAIC_GPU_DUMP_PTXAS": "1",
        },
        capture_output=True,
        text=True,
    )
    if done.returncode:
        sys.exit(f"compiling {operator} failed:\n{done.stderr[-2000:]}")


# Reading the machine code.


def tool(name: str) -> str:
    """Finds a program of the CUDA toolkit: on PATH, or in an installed package."""
    found = shutil.which(name)
    for package, where in (("nvidia", "*/bin"), ("triton", "backends/nvidia/bin")):
        spec = importlib.util.find_spec(package)
        for root in spec.submodule_search_locations if spec and not found else ():
            found = next(map(str, Path(root).glob(f"{where}/{name}")), None)
    return found or sys.exit(f"{name} was not found; put it on PATH")


def read_loops(assembly: str) -> list[list[str]]:
    """Finds the instructions of the innermost loops of a kernel, in their order."""
    instructions, labels, loops = [], {}, []
    for line in assembly.splitlines():
        if match := re.match(r"\s*(\.L_\S+):", line):
            labels[match[1]] = len(instructions)
        if match := re.match(r"\s*/\*[0-9a-f]+\*/\s+(?:@!?U?P\w+\s+)?(.*?);", line):
            instructions.append(match[1])
            branch = re.search(r"BRA.*`\((\.L_\S+)\)", line)
            if branch and branch[1] in labels:
                loops.append((labels[branch[1]], len(instructions)))
    inner = [a for a in loops if not any(a[0] <= b[0] and b[1] <= a[1] and a != b for b in loops)]
    return [instructions[start:end] for start, end in inner]


def figures(ptx: Path, states: int) -> list[dict]:
    """Returns a kernel's loops over whole groups of steps, with what ptxas says about the
    kernel.
    """
    said = ptx.with_suffix(".ptxas").read_text()
    cubin = ptx.with_suffix(".cubin")
    target = re.search(r"\.target (\w+)", ptx.read_text())[1]
    subprocess.run([tool("ptxas"), f"-arch={target}", ptx, "-o", cubin], check=True)
    listing = [tool("nvdisasm"), "-c", cubin]
    assembly = subprocess.run(listing, check=True, capture_output=True, text=True).stdout
    rows = []
    for loop in read_loops(assembly):
        counts = collections.Counter(i.split()[0].split(".")[0] for i in loop)
        # A step takes an exp per state, one for softplus and a reciprocal; fewer is no time loop.
        steps = counts["MUFU"] // (states + 2)
        if steps < 2:
            continue
        rows.append(
            {
                "kernel": re.sub(r"_\d+$", "", ptx.stem),
                "loop": "gradients" if counts["BAR"] else "recurrence",
                "steps": steps,
                "per state": round(len(loop) / steps / states, 1),
                "exp cycles": round(CYCLES_PER_EXP * counts["MUFU"] / steps / states, 1),
                "registers": int(re.search(r"Used (\d+) registers", said)[1]),
                "spilled bytes": int(re.search(r"(\d+) bytes spill stores", said)[1]),
                "instructions": dict(counts.most_common(12)),
            }
        )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--capability", type=int, default=90, help="90 for Hopper")
    parser.add_argument("--operators", default=",".join(OPERATORS))
    parser.add_argument("--child", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        return child(options.child)
    rows = []
    for operator in options.operators.split(","):
        with tempfile.TemporaryDirectory() as folder:
            compile_operator(operator, options.capability, Path(folder))
            for ptx in sorted(Path(folder).glob("*.ptx"), key=lambda p: int(p.stem.split("_")[-1])):
                rows += [{"operator": operator, **row} for row in figures(ptx, STATES)]
    columns = ["operator", "kernel", "loop", "steps", "per state", "exp cycles", "registers"]
    text = table(rows, {name: name for name in (*columns, "spilled bytes")})
    print(text)
    where = environment("jax", "jaxlib", "jax-cuda12-pjrt", "jax-cuda13-pjrt")
    head = (
        f"Machine code for sm_{options.capability}a: instructions per step and state of the loops "
        "over time, and\nthe cycles that their exps take the special-function units. Made without "
        f"a GPU, jax {where['jax']},\n{where['date']}, commit {where['commit']}, by "
        "`python benchmarks/mosaic_gpu_static.py`.\n\n"
    )
    name = "mosaic_gpu_static" + ("" if options.capability == 90 else f"_sm{options.capability}")
    write_results(name, {"environment": where, "loops": rows}, head + text)


if __name__ == "__main__":
    main()
