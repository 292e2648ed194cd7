"""Time and peak memory of selective scans on a CPU, forward and forward with gradient.

usage: python benchmarks/selective_scan.py [--repeats 5] [--candidates xla,torch_chunked]

Every candidate runs in a process of its own, and the candidates take turns, so that a change in the
machine's speed meets all of them. Reported are medians, and by how much the process's memory grew
at most in its first run. Writes benchmarks/results/selective_scan_cpu.{json,md}; with another
--length than the reference shape's it only prints.
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib.util
import json
import os
import statistics
import subprocess
import sys
import time

import numpy as np
import scan_candidates
from common import environment, memory_status, reset_peak_memory, table, write_results
from selective_scan_jax import implementations
from selective_scan_jax.testing import REFERENCE_SHAPE, random_operands

DEFAULT = ("xla", "cpu", "associative", "reference", "torch_chunked", "torch_steps", "mambapy")
PACKAGES = {"mambapy": "mambapy", "mamba_ssm": "mamba_ssm"}
MODES = ("forward", "both")


def make_operands(length: int) -> dict[str, np.ndarray]:
    """The reference shape with step sizes and decays as a freshly initialised model has them."""
    shape = dataclasses.replace(REFERENCE_SHAPE, length=length)
    operands = random_operands(shape)
    rng = np.random.default_rng(1)
    step = np.exp(rng.uniform(np.log(1e-3), np.log(1e-1), shape.channels))
    operands["delta_bias"] = np.log(np.expm1(step)).astype(np.float32)
    operands["delta"] *= 0.5
    operands["A"][:] = -np.arange(1, shape.state + 1)
    return operands


def work(name: str, mode: str, length: int) -> None:
    """A candidate's process."""
    operands = make_operands(length)
    serve(scan_candidates.load(name, mode == "both", operands), np.s_[0, ::97, ::31])


def serve(run, sample) -> None:
    """One line of JSON per run: the first at once, with memory and a sample of what run() gave.

    Args:
      run: the candidate, without arguments. sample: an index into its result.
    """
    before = memory_status("VmRSS")
    reset_peak_memory()
    y = np.asarray(run())
    peak = memory_status("VmHWM") - before
    answer = {"peak_bytes": peak, "sample": y[sample].tolist()}
    del y
    print(json.dumps(answer), flush=True)
    for _ in sys.stdin:
        start = time.perf_counter()
        run()
        print(json.dumps({"seconds": time.perf_counter() - start}), flush=True)


class Worker:
    """A candidate's process, idle until asked for a run.

    It runs `script --worker name mode`, which ends in `serve`.
    """

    def __init__(self, name: str, mode: str, script: str, *options: str):
        self.name, self.mode, self.seconds = name, mode, []
        command = [sys.executable, script, "--worker", name, mode, *options]
        # Threads that wait must not spin: another candidate is being timed meanwhile.
        quiet = os.environ | {"OMP_WAIT_POLICY": "passive", "JAX_PLATFORMS": "cpu"}
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=quiet
        )
        first = self._answer()
        self.peak, self.sample = first["peak_bytes"], first["sample"]

    def _answer(self):
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit(f"error: the process of {self.name!r} ({self.mode}) ended early")
        return json.loads(line)

    def run(self):
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        self.seconds.append(self._answer()["seconds"])

    def close(self):
        self.process.stdin.close()
        self.process.wait()


def measure(candidates, repeats: int, script: str, *options: str) -> list[Worker]:
    """Starts a worker of the script for every (name, mode); they take turns, `repeats` times."""
    workers = []
    try:
        for name, mode in candidates:
            print(f"first run of {name}, {mode}", file=sys.stderr, flush=True)
            workers.append(Worker(name, mode, script, *options))
        for repeat in range(repeats):
            for worker in workers:
                worker.run()
            print(f"{repeat + 1} of {repeats} rounds", file=sys.stderr, flush=True)
    finally:
        for worker in workers:
            worker.close()
    return workers


def summarise(workers) -> list[dict]:
    by_key = {(w.name, w.mode): w for w in workers}
    expected = by_key["xla", "forward"].sample
    rows = []
    for name in dict.fromkeys(w.name for w in workers):
        row = {"name": name, "label": scan_candidates.LABELS[name]}
        for mode in MODES:
            if (worker := by_key.get((name, mode))) is None:
                continue
            row |= {
                f"{mode}_seconds": statistics.median(worker.seconds),
                f"{mode}_fastest": min(worker.seconds),
                f"{mode}_peak_mib": round(worker.peak / 2**20),
            }
            if name != "exps":
                y, reference = np.array(worker.sample), np.array(expected)
                error = np.linalg.norm(y - reference) / np.linalg.norm(reference)
                row["difference_from_xla"] = float(f"{error:.1e}")
        rows.append(row)
    return rows


def report(rows, length, about) -> str:
    by_name = {row["name"]: row for row in rows}
    shown = [
        {k: f"{v:.3f}" if k.endswith(("seconds", "fastest")) else v for k, v in row.items()}
        for row in rows
    ]
    columns = {
        "label": "scan",
        "forward_seconds": "forward, s",
        "both_seconds": "forward and gradients, s",
        "forward_peak_mib": "memory, MiB",
        "both_peak_mib": "memory with gradients, MiB",
        "difference_from_xla": "difference from XLA",
    }
    lines = [
        "# Selective scan on a CPU",
        "",
        f"batch 1, length {length}, 1024 channels in 4 groups, 16 states, float32; medians of "
        f"{about['repeats']} rounds in which the candidates took turns. Memory is what the first "
        "run added to the process at its peak, outputs included.",
        "",
        table(shown, columns),
        "",
    ]
    xla, exps = by_name["xla"], by_name.get("exps")
    for other in ("torch_chunked", "torch_steps", "mambapy"):
        if other in by_name:
            ratios = [by_name[other][f"{m}_seconds"] / xla[f"{m}_seconds"] for m in MODES]
            lines.append(
                f"- {scan_candidates.LABELS[other]} takes {ratios[0]:.1f} times as long as the XLA "
                f"scan forward and {ratios[1]:.1f} times with gradients."
            )
    if exps:
        ratios = [xla[f"{m}_seconds"] / exps["forward_seconds"] for m in MODES]
        lines.append(
            f"- The XLA scan takes {ratios[0]:.1f} times as long as its exponentials alone, "
            f"{ratios[1]:.1f} times with gradients."
        )
    lines += ["", "Ran on: " + ", ".join(f"{k} {v}" for k, v in about.items())]
    return "\n".join(lines)


def installed(name: str) -> bool:
    if name in scan_candidates.TORCH and importlib.util.find_spec("torch") is None:
        return False
    return name not in PACKAGES or importlib.util.find_spec(PACKAGES[name]) is not None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--repeats", type=int, default=5, help="timed rounds (default 5)")
    parser.add_argument(
        "--candidates",
        default=",".join(DEFAULT),
        help=f"any of {', '.join(scan_candidates.LABELS)}; xla and exps always run",
    )
    parser.add_argument("--length", type=int, default=REFERENCE_SHAPE.length, help="steps")
    parser.add_argument("--worker", nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        work(*args.worker, args.length)
        return

    names = list(dict.fromkeys(["xla", *args.candidates.split(","), "exps"]))
    unknown = [name for name in names if name not in scan_candidates.LABELS]
    if unknown:
        parser.error(f"--candidates: {unknown[0]!r} is none of {', '.join(scan_candidates.LABELS)}")
    missing = [n for n in names if not installed(n) or implementations("cpu").get(n)]
    if missing:
        print(f"left out, not installed or not built: {', '.join(missing)}", file=sys.stderr)
    names = [name for name in names if name not in missing]

    candidates = [(n, mode) for n in names for mode in (MODES if n != "exps" else MODES[:1])]
    workers = measure(candidates, args.repeats, __file__, "--length", str(args.length))
    rows = summarise(workers)
    about = environment("jax", "jaxlib", "numpy", "torch", "mambapy") | {"repeats": args.repeats}
    markdown = report(rows, args.length, about)
    print(markdown)
    if args.length == REFERENCE_SHAPE.length:
        write_results("selective_scan_cpu", {"environment": about, "rows": rows}, markdown)


if __name__ == "__main__":
    main()
