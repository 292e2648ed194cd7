"""The native CPU kernels: time by instruction set and threads, whole models, distance to the floor.

usage: python benchmarks/cpu_kernel.py [--repeats 9] [--parts kernel,model,roofline]

kernel: `cross_scan` and `selective_scan` at the reference shape (batch 1, 243 frames of 17 joints,
4 x 256 channels, 16 states), forward and with all gradients, for every instruction set of this
machine and one or two threads, beside the XLA path. model: the forward pass of S, B and L on one
243-frame clip and a training step of configs/quickstart.yaml on 8 clips of 27 frames, native and
XLA. roofline: the instructions of the innermost loops, counted in the library's disassembly (needs
objdump), beside this machine's measured rate of independent multiply-adds at that width (needs a
C++ compiler).

Candidates take turns, so that a change in the machine's speed meets all; medians are reported.
Writes benchmarks/results/cpu_kernel.{json,md}. Against PyTorch: benchmarks/scan.py.
"""

from __future__ import annotations

import argparse
import functools
import os
import re
import subprocess
import tempfile
from pathlib import Path

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax
import jax.numpy as jnp
import numpy as np
from common import block_scan, environment, medians_in_turn, table, training_step, write_results
from selective_scan_jax.cpu import call as cpu
from selective_scan_jax.testing import (
    REFERENCE_BLOCK,
    initial_cross_operands,
    initial_operands,
    with_gradients,
)

ROOT = Path(__file__).parent.parent


def measure_kernels(repeats: int) -> list[dict]:
    candidates, memory = {}, {}
    for operation, operands in (
        ("cross_scan", initial_cross_operands(REFERENCE_BLOCK)),
        ("selective_scan", initial_operands(REFERENCE_BLOCK.selective).values()),
    ):
        operands = [jnp.asarray(a) for a in operands]
        for implementation in ("cpu", "xla"):
            forward = block_scan(operation, implementation)
            both = with_gradients(forward), (operands[0], *operands)
            for mode, (function, arrays) in (("forward", (forward, operands)), ("both", both)):
                compiled = jax.jit(function).lower(*arrays).compile()
                run = functools.partial(compiled, *arrays)
                analysis = compiled.memory_analysis()
                for level in cpu.levels() if implementation == "cpu" else ("",):
                    for threads in (1, 2) if implementation == "cpu" else (0,):
                        key = (operation, f"{implementation} {level}".strip(), threads, mode)
                        candidates[key], memory[key] = run, analysis.temp_size_in_bytes
    seconds = medians_in_turn(candidates, repeats, choose)
    rows = {}
    for (operation, name, threads, mode), value in seconds.items():
        key = (operation, name, threads)
        row = rows.setdefault(
            key, {"operation": operation, "name": name, "threads": threads or "all"}
        )
        row[f"{mode}_ms"] = round(value * 1e3, 2)
        row[f"{mode}_temporary_mib"] = round(memory[(*key, mode)] / 2**20, 1)
    cpu.set_level(cpu.levels()[0])
    cpu.set_threads(0)
    return list(rows.values())


def choose(candidate: tuple) -> None:
    """Sets the instruction set and the threads that a candidate of `measure_kernels` names."""
    _, name, threads, _ = candidate
    if threads:
        cpu.set_level(name.split()[1])
        cpu.set_threads(threads)


def measure_models(repeats: int) -> list[dict]:
    from posemamba_jax.config import load_config
    from posemamba_jax.model import PoseMamba, PoseMambaConfig

    rng, candidates = np.random.default_rng(0), {}
    grid = (REFERENCE_BLOCK.frames, REFERENCE_BLOCK.joints)
    poses = jnp.asarray(rng.normal(size=(1, *grid, 2)), jnp.float32)
    for size in ("S", "B", "L"):
        for implementation in ("cpu", "xla"):
            config = PoseMambaConfig.preset(size, implementation=implementation)
            model = PoseMamba(config)
            variables = jax.jit(model.init)(jax.random.key(0), poses)
            forward = jax.jit(model.apply).lower(variables, poses).compile()
            run = functools.partial(forward, variables, poses)
            candidates[f"{size} forward", implementation] = run
    for implementation in ("cpu", "xla"):
        arguments = ["--config", str(ROOT / "configs" / "quickstart.yaml")]
        arguments += ["--data.clip_len=27", "--train.batch_size=8"]
        config = load_config([*arguments, "--model.implementation", implementation], prog="")
        candidates["quickstart training step", implementation] = training_step(config)
    seconds = medians_in_turn(candidates, repeats)
    return [
        {
            "what": what,
            "native_ms": round(seconds[what, "cpu"] * 1e3, 1),
            "xla_ms": round(seconds[what, "xla"] * 1e3, 1),
            "ratio": round(seconds[what, "xla"] / seconds[what, "cpu"], 2),
        }
        for what in dict.fromkeys(what for what, _ in candidates)
    ]


RATE = """
#include <chrono>
#include <cstdio>
typedef float V __attribute__((vector_size(LANES * 4)));
int main() {
  V a[10], c = V{} + 0.5f;
  for (auto& x : a) x = V{} + 1.0f;
  double best = 0;
  for (int round = 0; round < 20; ++round) {
    auto start = std::chrono::steady_clock::now();
    for (int i = 0; i < 1000000; ++i) {
      for (auto& x : a) x = x * c + c;
      asm volatile("" : "+REG"(a[0]), "+REG"(a[1]), "+REG"(a[2]), "+REG"(a[3]), "+REG"(a[4]));
    }
    std::chrono::duration<double> s = std::chrono::steady_clock::now() - start;
    if (1e7 / s.count() > best) best = 1e7 / s.count();
  }
  float sum = 0;
  for (auto& x : a) sum += x[0];
  std::printf("%g %g\\n", best, sum);
}
"""
WIDTHS = {  # level: lanes, compiler flags, register class
    "avx512": (16, ["-mavx512f"], "v"),
    "avx2": (8, ["-mavx2", "-mfma"], "x"),
}
MULTIPLY_ADD = re.compile(r"v(fn?m(add|sub)\d+|mul)ps")
OTHER_ARITHMETIC = re.compile(r"v(add|sub|max|min)ps|vp(add|sub|sll)d|vpternlogd|vrndscaleps")


def multiply_add_rate(level: str) -> float:
    """Returns independent vector multiply-adds a second on one core, best of several tries."""
    lanes, flags, register = WIDTHS[level]
    with tempfile.TemporaryDirectory() as folder:
        program = str(Path(folder) / "rate")
        source = RATE.replace("LANES", str(lanes)).replace("REG", register)
        command = [os.environ.get("CXX", "c++"), "-O3", "-ffp-contract=fast", *flags]
        subprocess.run(
            [*command, "-x", "c++", "-", "-o", program], input=source, text=True, check=True
        )
        return float(subprocess.run([program], capture_output=True, text=True).stdout.split()[0])


def innermost_loops(function: str) -> list[list[str]]:
    """Returns instructions of the loops that contain no other loop, from a disassembly."""
    lines = [x.split("\t") for x in function.splitlines() if "\t" in x]
    index = {int(x[0].strip(" :"), 16): i for i, x in enumerate(lines)}
    loops = []
    for i, line in enumerate(lines):
        jump = re.match(r"j\w+\s+([0-9a-f]+)", line[1])
        start = index.get(int(jump[1], 16)) if jump else None
        if start is not None and start < i:
            loops.append((start, i))
    inner = [a for a in loops if not any(a != b and a[0] <= b[0] and b[1] <= a[1] for b in loops)]
    return [[x[1] for x in lines[a : b + 1]] for a, b in inner]


def count_instructions(level: str) -> list[dict]:
    """Returns vector instructions per vector of state and step in the kernels' innermost loops."""
    command = ["objdump", "-d", "-C", "--no-show-raw-insn", str(cpu._DIRECTORY / cpu.LIBRARY)]
    text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    register = {"avx512": "%zmm", "avx2": "%ymm"}[level]
    rows = []
    for name, pattern, states in (
        ("forward", r"::advance<(\d+), [^>]*Range\)0>\(", None),
        ("backward", r"::retreat<(\d+), [^>]*Range\)0, false>\(", None),
    ):
        best = None
        for function in text.split("\n\n"):
            head = re.search(pattern, function.split("\n", 1)[0])
            if head and int(head[1]) > 1 and register in function:
                loops = [x for x in innermost_loops(function) if any(register in y for y in x)]
                states, best = int(head[1]), [y for x in loops for y in x]
        multiply_adds = sum(bool(MULTIPLY_ADD.match(x)) for x in best)
        others = sum(bool(OTHER_ARITHMETIC.match(x)) for x in best)
        rows.append(
            {
                "loop": name,
                "multiply_adds": multiply_adds / states,
                "other_arithmetic": others / states,
                "instructions": len(best) / states,
            }
        )
    return rows


def measure_roofline(kernels: list[dict]) -> list[dict]:
    rows = []
    for level in (x for x in cpu.levels() if x in WIDTHS):
        rate = multiply_add_rate(level)
        vectors = REFERENCE_BLOCK.state_steps / WIDTHS[level][0]
        measured = {
            x["operation"]: x for x in kernels if x["name"] == f"cpu {level}" and x["threads"] == 1
        }
        for row in count_instructions(level):
            row = {"level": level, "multiply_adds_per_ns": round(rate / 1e9, 2), **row}
            row["floor_ms"] = round(vectors * row["multiply_adds"] / rate * 1e3, 1)
            if x := measured.get("cross_scan"):
                both = x["both_ms"] - x["forward_ms"]
                row["measured_ms"] = x["forward_ms"] if row["loop"] == "forward" else round(both, 1)
            rows.append(row)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--parts", default="kernel,model,roofline")
    options = parser.parse_args()
    if (reason := cpu.unavailable_reason()) is not None:
        raise SystemExit(f"error: {reason}")
    parts = options.parts.split(",")
    data = {"environment": environment("jax", "jaxlib", "numpy")}
    text = [f"```\n{data['environment']}\n```"]
    data["kernel"] = measure_kernels(options.repeats) if {"kernel", "roofline"} & {*parts} else []
    if "model" in parts:
        data["model"] = measure_models(options.repeats)
    if "roofline" in parts:
        data["roofline"] = measure_roofline(data["kernel"])
    for part in ("kernel", "model", "roofline"):
        if rows := data.get(part):
            text.append(table(rows, {key: key.replace("_", " ") for key in rows[0]}))
    print("\n\n".join(text))
    if {"kernel", "model", "roofline"} <= {*parts}:
        write_results("cpu_kernel", data, "\n\n".join(text))


if __name__ == "__main__":
    main()
