"""The TPU kernels' static schedule and memory, from the TPU compiler, without a TPU.

usage: python benchmarks/tpu_static.py [--topologies v5e:2x2,v6e:2x2] [--parts schedule,memory]

A TPU core issues one bundle of instructions per cycle, in the order the compiler has put them, so
the bundles of a loop are its cycles, memory stalls aside. schedule: the kernels of `cross_scan` and
`selective_scan` at the reference shape (243 frames of 17 joints, 16 states, float32), with 4 x 256
channels as in models B and L and with 4 x 128 as in S, are compiled for each topology, with
gradients, and the bundles of their loops are counted in what libtpu dumps. A figure is bundles per
step and vector register of state (8 states of 128 channels). "Loop" is the loop over time; "visit"
is all that the kernel does for a chunk, the loop included.
memory: what the whole program on the first topology needs beside its arguments and results at batch
16, and what the same scans need on stacked copies of the directions.

Writes benchmarks/results/tpu_static.{json,md}. Needs libtpu (pip install libtpu).
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

from common import OPERATIONS, block_structs, environment, table, write_results
from selective_scan_jax.testing import REFERENCE_BLOCK, with_gradients

# A branch takes effect after this many further bundles.
DELAY = 4
FEWEST_UNROLLED_STEPS = 8
# Loops that a kernel's pipeline consists of, beside those of the kernel's own, are shorter.
MOST_PIPELINE_BUNDLES = 50
CHANNELS = (256, 128)
_BUNDLE = re.compile(r"^\s*(?:0x[0-9a-f]+|0)\s*([A-Z]{2})?\s*:")
_BRANCH = re.compile(r"sbr\.rel \(!?%p\w+\) target = \$region(\d+)")


# In a process of its own: libtpu reads where to dump to when it is loaded.


def compile_operator(
    topology: str, operator: str, batch: int, channels: int, *, gradients: bool, stacked: bool
):
    """Compiles an operator; returns the program and its kernels' plans by name, in the order of
    their calls.
    """
    import jax
    from jax.experimental import topologies
    from jax.sharding import SingleDeviceSharding
    from selective_scan_jax import ScanOrder, Target, composed, lowering_for
    from selective_scan_jax.mosaic_tpu import operators as mosaic_tpu
    from selective_scan_jax.operands import CrossScanOperands, ScanOperands

    plans = {"forward": [], "backward": []}

    def recorded(name):
        kernel = getattr(mosaic_tpu, name)

        def call(plan, *args, **kwargs):
            plans[name].append(plan)
            return kernel(plan, *args, **kwargs)

        return call

    def run(*arrays):
        if operator == "selective_scan":
            operands = ScanOperands(*arrays)
            return mosaic_tpu.selective_scan(operands, delta_softplus=True, reverse=False)[0]
        order = ScanOrder.named("limbs")
        operands = CrossScanOperands(*arrays)
        if stacked:
            return composed.cross_scan(mosaic_tpu.selective_scan, operands, order=order)
        return mosaic_tpu.cross_scan(operands, order=order)

    device = topologies.get_topology_desc(platform="tpu", topology_name=topology).devices[0]
    block = dataclasses.replace(REFERENCE_BLOCK, batch=batch, channels=channels)
    inputs = block_structs(operator, block)
    if gradients:
        run, inputs = with_gradients(run), [inputs[0], *inputs]
    placed = [
        jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=SingleDeviceSharding(device))
        for a in inputs
    ]
    for name in plans:
        setattr(mosaic_tpu, name, recorded(name))
    with lowering_for(Target("tpu", device.device_kind)):
        compiled = jax.jit(run).lower(*placed).compile()
    return compiled, plans


def child(job: dict) -> dict:
    from selective_scan_jax.mosaic_tpu import chunk as mosaic_tpu_chunk

    compiled, plans = compile_operator(**job)
    memory = compiled.memory_analysis()
    result = {
        "temporary_bytes": memory.temp_size_in_bytes,
        "argument_bytes": memory.argument_size_in_bytes,
        "output_bytes": memory.output_size_in_bytes,
    }
    for name, used in plans.items():
        result[name] = [
            dataclasses.asdict(plan)
            | {
                "path": plan.path,
                "rows": plan.rows,
                "registers": plan.lane_groups * plan.states // 8,
                "steps": plan.steps_together,
                "spreads": plan.rows // plan.unroll(plan.rows, mosaic_tpu_chunk.MOST_SPREAD_STEPS),
            }
            for plan in used
        ]
    return result


def in_child(folder: str | None, **job) -> dict:
    """Runs `child` in a process whose libtpu dumps to `folder`."""
    flags = f"--xla_jf_dump_to={folder} --xla_jf_dump_llo_text=true" if folder else ""
    print(f"compiling {job}", flush=True)
    done = subprocess.run(
        [sys.executable, __file__, "--child", json.dumps(job)],
        env=os.environ
        | {
            "JAX_PLATFORMS": "cpu",
            "TPU_SKIP_MDS_QUERY": "1",
            "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
            "LIBTPU_INIT_ARGS": flags,
        },
        capture_output=True,
        text=True,
    )
    if done.returncode:
        sys.exit(f"compiling for {job['topology']} failed:\n{done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])


# Reading the dumps.


@dataclasses.dataclass
class Loop:
    """Bundles of one loop, those of loops inside it left out, and their text."""

    bundles: int
    text: str

    def count(self, instruction: str) -> int:
        return len(re.findall(rf"= {instruction}", self.text))


def read_loops(path: Path) -> list[Loop]:
    """Finds the loops of a kernel in the order of their ends, so the loop over its grid is last."""
    bundles, open_loops, loops = [], [], []
    for line in path.read_text(errors="replace").splitlines():
        if match := _BUNDLE.match(line):
            bundles.append((match.group(1) == "LB", line))
    inner = [0] * len(bundles)  # how many of the bundles from here on belong to loops inside
    for i, (begins, line) in enumerate(bundles):
        if begins:
            open_loops.append(i)
        branch = _BRANCH.search(line)
        if not branch or not open_loops:
            continue
        start = open_loops[-1]
        heading = bundles[start - 1][1] + bundles[start][1]
        if re.search(rf"Start region {branch.group(1)}\b", heading):
            open_loops.pop()
            end = min(i + 1 + DELAY, len(bundles))
            nested = sum(inner[start:end])
            loops.append(
                Loop(end - start - nested, "\n".join(line for _, line in bundles[start:end]))
            )
            inner[start:end] = [0] * (end - start)
            inner[start] = end - start
    return loops


def figures_of_kernel(path: Path, plan: dict) -> dict:
    """Bundles per step and register of state of a kernel's loops over time and of a whole visit."""
    *loops, grid = read_loops(path)
    registers, rows = plan["registers"], plan["rows"]
    figures, visit = {}, grid.bundles
    for loop in loops:
        # A few instructions of what follows a loop may have been moved into it.
        exps = loop.count(r"(?:vexp2|vpow2)\.f32") // registers
        if exps < FEWEST_UNROLLED_STEPS:
            spreads = "vmatmul" in loop.text
            if not spreads and loop.bundles > MOST_PIPELINE_BUNDLES:
                raise ValueError(f"{path.name}: unknown loop of {loop.bundles} bundles")
            visit += loop.bundles * (plan["spreads"] if spreads else 1)
            continue
        name = "adjoint" if "vadd.xlane" in loop.text else "recurrence"
        steps = plan["steps"]
        if exps != steps:
            raise ValueError(f"{path.name}: {exps} steps in a loop, expected {steps}")
        visit += loop.bundles * (rows // steps)
        figures[name] = {
            "bundles": loop.bundles,
            "steps": steps,
            "per_step_and_register": round(loop.bundles / steps / registers, 2),
        }
    return figures | {"visit_per_step_and_register": round(visit / rows / registers, 2)}


def number_of_call(path: Path) -> int:
    return int(re.search(r"\.(\d+)-\d+-final_bundles", path.name).group(1))


def schedule(topologies: list[str]) -> list[dict]:
    return [
        {"chip": topology.split(":")[0], "channels": channels, "states": REFERENCE_BLOCK.state}
        | row
        for topology in topologies
        for channels in CHANNELS
        for operator in OPERATIONS
        for row in kernels_of(topology, operator, channels)
    ]


def kernels_of(topology: str, operator: str, channels: int) -> list[dict]:
    """Compiles an operator with gradients and reads the loops of each of its kernels."""
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        job = dict(topology=topology, operator=operator, batch=1, gradients=True, stacked=False)
        plans = in_child(folder, channels=channels, **job)
        for name in ("forward", "backward"):
            paths = [
                p
                for p in Path(folder).glob(f"*selective_scan_{name}*final_bundles.txt")
                if "schedule-analysis" not in p.name
            ]
            for path, plan in zip(sorted(paths, key=number_of_call), plans[name], strict=True):
                row = {"operator": operator, "kernel": name, "path": plan["path"]}
                rows.append(row | figures_of_kernel(path, plan))
    return rows


def memory(topology: str) -> list[dict]:
    rows = []
    for gradients in (False, True):
        for stacked in (False, True):
            found = in_child(
                None,
                topology=topology,
                operator="cross_scan",
                batch=16,
                channels=REFERENCE_BLOCK.channels,
                gradients=gradients,
                stacked=stacked,
            )
            rows.append(
                {
                    "pass": "forward and gradients" if gradients else "forward",
                    "route": "stacked directions" if stacked else "cross_scan",
                    "temporary_MB": round(found["temporary_bytes"] / 1e6, 1),
                }
            )
    return rows


def markdown(data: dict) -> str:
    parts = [
        f"Counted {data['environment']['date']} for {', '.join(data['topologies'])} with libtpu "
        f"{data['environment']['libtpu']}, jax {data['environment']['jax']}, commit "
        f"{data['environment']['commit']}: `python benchmarks/tpu_static.py`"
    ]
    if rows := data.get("schedule"):
        flat = []
        for row in rows:
            flat.append({k: row[k] for k in ("chip", "channels", "operator", "kernel", "path")} | {
                "visit": row["visit_per_step_and_register"],
                **{k: row[k]["per_step_and_register"] for k in ("recurrence", "adjoint")
                   if k in row},
            })  # fmt: skip
        parts.append("Bundles per step and vector register of state:\n\n" + table(flat, {
            "chip": "chip",
            "channels": "E",
            "operator": "operator",
            "kernel": "kernel",
            "path": "path",
            "recurrence": "loop: recurrence",
            "adjoint": "loop: adjoint",
            "visit": "whole visit",
        }))  # fmt: skip
    if rows := data.get("memory"):
        parts.append(
            "Memory beside arguments and results, `cross_scan` at batch 16:\n\n"
            + table(rows, {"pass": "pass", "route": "route", "temporary_MB": "temporary, MB"})
        )
    return "\n\n".join(parts)


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--topologies", default="v5e:2x2,v6e:2x2")
    parser.add_argument("--parts", default="schedule,memory")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        print(json.dumps(child(json.loads(args.child))))
        return
    topologies, parts = args.topologies.split(","), args.parts.split(",")
    data = {"environment": environment("jax", "libtpu"), "topologies": topologies}
    if "schedule" in parts:
        data["schedule"] = schedule(topologies)
    if "memory" in parts:
        data["memory"] = memory(topologies[0])
    write_results("tpu_static", data, markdown(data))
    print(markdown(data))


if __name__ == "__main__":
    main()
