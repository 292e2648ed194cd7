"""What the GPU kernels cost, from their machine code, without a GPU.

usage: python benchmarks/gpu_static.py triton [--family cross-256,...] [--capability 90] [--again]
       python benchmarks/gpu_static.py mosaic [--operators cross_scan,...] [--capability 90]

triton: every Triton kernel is compiled at the sizes that the heuristic chooses among, for the scan
of a block of B and L (cross-256), of S (cross-128) and of the same sequences as a `selective_scan`:
registers, spills, and cycles of the loops over time by the latency model
(`selective_scan_jax.gpu_latency`, which says what it takes into account). From these the time of
the forward and the backward kernels on an H100 or H200 is modelled at five batch sizes. Nothing was
measured on a GPU; expect 30 % either way. Writes benchmarks/results/gpu_static.{json,md} after
every kernel, and takes up where it was cut off.

mosaic: the Mosaic GPU kernels of both operators at the reference shape (243 frames of 17 joints,
4 x 256 channels, 16 states, float32, batch 4) are lowered, with gradients, and handed to the
compiler inside JAX's CUDA plugin. That asks the driver for the compute capability and to load the
result; where there is no driver, a library that answers just these questions stands in for it, made
by the C compiler at hand. ptxas then says what registers and spills there are, and the instructions
of the loops over time are counted in its machine code. A figure is machine instructions per step
and state; the loop is named by what it does, and a warp executes them for 32 channels. Writes
benchmarks/results/mosaic_gpu_static.{json,md}. Needs jax 0.11 or later with its CUDA plugin
(pip install "jax[cuda12]" or "jax[cuda13]"; no GPU), a C compiler, and ptxas and nvdisasm, which
that or triton brings.

Files of another capability than 90 have it in their names.
"""

from __future__ import annotations

import argparse
import collections
import ctypes
import dataclasses
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import jax
from common import (
    OPERATIONS,
    RESULTS,
    block_scan,
    block_structs,
    environment,
    table,
    write_results,
)
from selective_scan_jax import Target, lowering_for, tuning
from selective_scan_jax import gpu_latency as latency
from selective_scan_jax.mosaic_gpu import heuristic as mosaic
from selective_scan_jax.testing import REFERENCE_BLOCK, BlockShape, with_gradients
from selective_scan_jax.triton import static
from selective_scan_jax.triton.heuristic import Config, heuristic

BATCHES = (1, 4, 16, 64, 256)
FAMILIES = {"cross-256": 256, "cross-128": 128, "selective-256": 256}
# States of a program and steps in flight, forward and backward, that are compiled.
STATES_AND_GROUPS = ((16, 3, 8, 3), (4, 6, 4, 3))
# mamba-ssm's CUDA kernel at B's sizes if it issued an instruction a cycle: its instructions a
# state and step, forward and backward (of its machine code), and L filled up to blocks of 2048.
MAMBA_INSTRUCTIONS, MAMBA_LENGTH = (38, 101), 3 * 2048

MOSAIC_BATCH = 4  # time is cut into parts, so all kernels are needed

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


def block_of(family: str, batch: int = 1) -> BlockShape:
    """Describes the block whose scan a family is."""
    channels = FAMILIES[family]
    return dataclasses.replace(REFERENCE_BLOCK, batch=batch, channels=channels, rank=channels // 32)


def shape_of(family: str, batch: int) -> dict[str, int]:
    """Describes the shape as the heuristic sees it."""
    sizes = dataclasses.asdict(block_of(family, batch))
    sizes["length"] = sizes.pop("frames") * sizes.pop("joints")
    return sizes | ({"rank": 0} if family.startswith("selective") else {})


def family_figures(rows: list[dict], family: str) -> dict[tuple[str, int], static.Figures]:
    """Collects the figures of a family's kernels, as `static.modelled_ms` takes them."""
    return {
        (row["kernel"], row["states"]): static.Figures(
            row["group"], row["registers"], row["spilled"], tuple(row["cycles"])
        )
        for row in rows
        if row["family"] == family
    }


def floor_ms(family: str, batch: int) -> float:
    """Computes the time of the forward pass's exponentials, the larger of the two bounds."""
    return block_of(family, batch).state_steps / (132 * 16 * static.CLOCK) * 1e3


def mamba_ms(family: str, batch: int, backward: bool) -> float:
    """Computes the time of mamba-ssm's kernel alone if schedulers issued an instruction a cycle."""
    block = block_of(family, batch)
    state_steps = block.state_steps // (block.frames * block.joints) * MAMBA_LENGTH
    instructions = state_steps * MAMBA_INSTRUCTIONS[backward] / 32
    return instructions / (latency.SCHEDULERS * static.CLOCK) * 1e3


def modelled_times(rows: list[dict]) -> list[dict]:
    """Models the times of what the heuristic chooses, for the families that are complete."""
    found = []
    for family in FAMILIES:
        kernels = family_figures(rows, family)
        for batch in BATCHES:
            shape = shape_of(family, batch)
            config = heuristic(shape)
            try:
                passes = [static.modelled_ms(kernels, shape, config, b) for b in (False, True)]
            except KeyError:
                break
            found.append(
                {
                    "scan": family,
                    "batch": batch,
                    "states, segments": f"{config.states}, {config.segments}",
                    "forward ms": round(passes[0], 3),
                    "floor ms": round(floor_ms(family, batch), 3),
                    "mamba-ssm forward ms": round(mamba_ms(family, batch, False), 2),
                    "backward states, segments": (
                        f"{config.backward_states}, {config.backward_segments}"
                    ),
                    "backward ms": round(passes[1], 3),
                    "mamba-ssm backward ms": round(mamba_ms(family, batch, True), 2),
                }
            )
    return found


def write_triton(rows: list[dict], capability: int) -> None:
    modelled = modelled_times(rows) if capability == 90 else []
    about = environment("jax", "jax-triton", "triton")
    head = (
        f"Compute capability {capability / 10}, `python benchmarks/gpu_static.py triton`: modelled "
        "from machine code, not measured. Cycles are those of a scheduler for one step of each of "
        "its 1, 2, ... warps, as many as the registers allow; a warp has 32 channels.\n\n"
    )
    text = head + table(rows, {key: key for key in rows[0]})
    if modelled:
        text += (
            "\n\nTimes on an H100 or H200 (528 schedulers at 1.98 GHz), with the writing and the "
            "adding up of partial outputs, without launches. Beside them the exponentials of the "
            "forward pass alone, and mamba-ssm's kernel if it issued an instruction a cycle "
            "and its four directions were there already.\n\n"
        ) + table(modelled, {key: key for key in modelled[0]})
    text += f"\n\n```\n{about}\n```"
    write_results(
        of_capability("gpu_static", capability),
        {"environment": about, "kernels": rows, "times": modelled},
        text,
    )


def triton_study(options) -> None:
    """Writes the results of `triton`."""
    path = RESULTS / f"{of_capability('gpu_static', options.capability)}.json"
    rows = [] if options.again or not path.exists() else json.loads(path.read_text())["kernels"]
    for family in options.family.split(","):
        operation = f"{family.split('-')[0]}_scan"
        scan = with_gradients(block_scan(operation, "triton"))
        arrays = block_structs(operation, block_of(family))
        for states, group, backward_states, backward_group in STATES_AND_GROUPS:
            config = Config(
                states=states,
                group=group,
                segments=2,
                backward_states=backward_states,
                backward_group=backward_group,
                backward_segments=2,
            )
            with tuning.trying({"triton_scan": config}):
                launches = static.launches(scan, arrays[0], *arrays)
            for launch in launches:
                what = {"family": family, "kernel": launch.kernel, "states": launch.layout.block_n}
                if any(what.items() <= row.items() for row in rows):
                    continue
                found = static.analyse(launch, options.capability).figures()
                rows.append(
                    what
                    | {"group": found.group, "registers": found.registers}
                    | {"spilled": found.spilled, "cycles": list(found.cycles)}
                )
                print(rows[-1], flush=True)
                write_triton(rows, options.capability)
    write_triton(rows, options.capability)


# In a process of its own, which finds the stand-in for the driver when it starts.


def mosaic_kernels(operator: str, capability: int) -> list[bytes]:
    """Lowers an operator with its gradients; returns the kernels as the compiler takes them."""
    from jax.experimental.mosaic.gpu import core

    arrays = block_structs(operator, dataclasses.replace(REFERENCE_BLOCK, batch=MOSAIC_BATCH))
    run = with_gradients(block_scan(operator, "mosaic_gpu"))
    with lowering_for(Target("gpu", compute_capability=capability)):
        jax.jit(run).trace(arrays[0], *arrays).lower(lowering_platforms=("cuda",))
    return list(core.KNOWN_KERNELS.values())


def child(operator: str) -> None:
    """Compiles the kernels; what the compiler dumps goes where the environment says."""
    plugins = [f"jax_plugins.xla_cuda{version}" for version in (13, 12)]
    plugin = next(filter(None, map(importlib.util.find_spec, plugins)))
    library = ctypes.CDLL(str(Path(plugin.origin).parent / "xla_cuda_plugin.so"))
    library.MosaicGpuCompile.restype = ctypes.c_void_p
    for module in mosaic_kernels(operator, int(os.environ["CAPABILITY"])):
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
        [sys.executable, __file__, "mosaic", "--child", operator],
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


def loop_figures(ptx: Path, states: int) -> list[dict]:
    """Counts a kernel's loops over whole groups of steps; adds what ptxas says of the kernel."""
    said = ptx.with_suffix(".ptxas").read_text()
    cubin = ptx.with_suffix(".cubin")
    target = re.search(r"\.target (\w+)", ptx.read_text())[1]
    subprocess.run([tool("ptxas"), f"-arch={target}", ptx, "-o", cubin], check=True)
    listing = [tool("nvdisasm"), "-c", cubin]
    assembly = subprocess.run(listing, check=True, capture_output=True, text=True).stdout
    rows = []
    for loop in latency.loops(assembly):
        counts = collections.Counter(instruction.name for instruction in loop)
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
                "cycles": [round(latency.cycles(loop, warps) / steps, 1) for warps in (1, 2)],
                "exp cycles": round(latency.SPECIAL_BUSY * counts["MUFU"] / steps / states, 1),
                "registers": int(re.search(r"Used (\d+) registers", said)[1]),
                "spilled bytes": int(re.search(r"(\d+) bytes spill stores", said)[1]),
                "instructions": dict(counts.most_common(12)),
            }
        )
    return rows


def mosaic_times(rows: list[dict]) -> list[dict]:
    """Models the times of the families' scans, those of S with the cycles of B's kernels."""
    triton = json.loads((RESULTS / "gpu_static.json").read_text())["times"]
    found = []
    for family in FAMILIES:
        cycles = mosaic_cycles(rows, f"{family.split('-')[0]}_scan")
        for batch in BATCHES if cycles else ():
            beside = next(t for t in triton if (t["scan"], t["batch"]) == (family, batch))
            row = {"scan": family, "batch": batch}
            for name, pair in zip(("forward", "backward"), cycles, strict=True):
                ms = mosaic_ms(family, batch, pair, backward=name == "backward")
                row |= {f"{name} ms": round(ms, 3), f"triton {name} ms": beside[f"{name} ms"]}
            found.append(row)
    return found


def mosaic_cycles(rows: list[dict], operator: str) -> list[tuple]:
    """Returns the cycles of an operator's scan and of its pass before, forward and backward.

    A multiprocessor holds two programs of a forward kernel, whose registers allow no more, and one
    of the backward kernel, which takes nearly all of its shared memory; a program has a warp for
    each scheduler. Empty if the operator was not compiled.
    """
    loops = collections.defaultdict(list)
    for row in rows:
        if row["operator"] == operator:
            loops[row["kernel"], row["loop"]].append(row["cycles"])
    if not loops:
        return []
    # The paths of several directions differ little: their mean.
    cycles = {key: [sum(c) / len(c) for c in zip(*of, strict=True)] for key, of in loops.items()}
    again, gradients = (cycles["backward_scan", loop][0] for loop in ("recurrence", "gradients"))
    return [
        (cycles["forward_scan", "recurrence"], cycles["forward_ends", "recurrence"]),
        ([again + gradients], cycles["backward_ends", "recurrence"]),
    ]


def mosaic_ms(family: str, batch: int, cycles: tuple, *, backward: bool) -> float:
    """Models the milliseconds of a pass; `cycles` as for `heuristic.turn_cycles`.

    The output of each direction is written, and read to be added up.
    """
    shape, operator = shape_of(family, batch), f"mosaic_gpu_{family.split('-')[0]}_scan"
    config = mosaic.choose_config(operator, {**shape, "states": shape["state"]})
    programs, launches = batch * -(-shape["channels"] // mosaic.CHANNELS), 1
    if family.startswith("selective") or mosaic.side_by_side(programs, config):
        programs *= shape["directions"]
    else:
        launches = shape["directions"]
    parts = mosaic.parts_of(shape["length"], programs, config, backward=backward)
    steps = -(-shape["length"] // (parts * config.segment)) * config.segment
    turns = min(steps, shape["length"]) * mosaic.turn_cycles(programs * parts, parts, cycles)
    outputs = shape["directions"] * batch * shape["length"] * shape["channels"]
    seconds = launches * turns / static.CLOCK + 2 * 4 * outputs / static.BANDWIDTH
    return seconds * 1e3


def mosaic_study(options) -> None:
    """Writes the results of `mosaic`."""
    if options.child:
        return child(options.child)
    rows = []
    for operator in options.operators.split(","):
        with tempfile.TemporaryDirectory() as folder:
            compile_operator(operator, options.capability, Path(folder))
            for ptx in sorted(Path(folder).glob("*.ptx"), key=lambda p: int(p.stem.split("_")[-1])):
                rows += [
                    {"operator": operator, **row}
                    for row in loop_figures(ptx, REFERENCE_BLOCK.state)
                ]
    columns = ["operator", "kernel", "loop", "steps", "per state", "exp cycles", "registers"]
    text = table(rows, {name: name for name in (*columns, "spilled bytes", "cycles")})
    modelled = mosaic_times(rows) if options.capability == 90 else []
    if modelled:
        text += (
            "\n\nTimes on an H100 or H200, modelled as those of the Triton kernels are, which "
            "stand beside them; those of cross-128 with the cycles of cross-256.\n\n"
        ) + table(modelled, {name: name for name in modelled[0]})
    print(text)
    where = environment("jax", "jaxlib", "jax-cuda12-pjrt", "jax-cuda13-pjrt")
    head = (
        f"Machine code for sm_{options.capability}a: instructions per step and state of the loops "
        "over time,\nthe cycles that their exps take the special-function units, and the modelled "
        "cycles of a\nscheduler for a step of each of its one or two warps. Made without "
        f"a GPU, jax {where['jax']},\n{where['date']}, commit {where['commit']}, by "
        "`python benchmarks/gpu_static.py mosaic`.\n\n"
    )
    name = of_capability("mosaic_gpu_static", options.capability)
    write_results(name, {"environment": where, "loops": rows, "times": modelled}, head + text)


def of_capability(name: str, capability: int) -> str:
    """Names the results of a compute capability: 90 is what the pages speak of."""
    return name if capability == 90 else f"{name}_sm{capability}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    studies = parser.add_subparsers(required=True)
    triton = studies.add_parser("triton")
    triton.add_argument("--family", default=",".join(FAMILIES))
    triton.add_argument("--again", action="store_true", help="forget what is there")
    triton.set_defaults(run=triton_study)
    mosaic = studies.add_parser("mosaic")
    mosaic.add_argument("--operators", default=",".join(OPERATIONS))
    mosaic.add_argument("--child", help=argparse.SUPPRESS)
    mosaic.set_defaults(run=mosaic_study)
    for study in (triton, mosaic):
        study.add_argument("--capability", type=int, default=90, help="90 for 9.0, Hopper")
    options = parser.parse_args()
    options.run(options)


if __name__ == "__main__":
    main()
