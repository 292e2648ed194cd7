"""One stage of benchmarks/gpu.sh, or the report of what the stages found.

usage: python benchmarks/gpu.py times|training|memory|mamba|report [--dry]

    times     the scan of a block (243 frames of 17 joints, 4 x 256 channels, 16 states, rank 8) by
              every implementation that can run, forward and with all gradients, beside the floor
              that exponentials and bytes set on this GPU
    training  whole training steps of S and B in float32 and bfloat16
    memory    the compiler's account of the temporary buffers of the scan
    mamba     mamba-ssm's CUDA kernel on the same scan, alone and with the copies of the four
              directions that it needs
    report    OUT/gpu.md from what is there

Each result is one line of OUT/STAGE.jsonl, written as soon as it is there; what is there already is
not measured again. Times are the GPU's own: the busy time that JAX's profiler records, and CUDA
events for PyTorch; on a CPU (--dry) the clock on the wall. OUT is the environment's, by default
benchmarks/results/gpu.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import functools
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import jax
import jax.numpy as jnp
from common import OPERATIONS, RESULTS, block_scan, environment, table, training_step
from selective_scan_jax import available, interpreted
from selective_scan_jax.testing import (
    REFERENCE_BLOCK,
    BlockShape,
    random_cross_operands,
    random_operands,
    with_gradients,
)

OUT = Path(os.environ.get("OUT") or RESULTS / "gpu")
STAGES = ("times", "training", "memory", "mamba")

# Multiprocessors of 16 exponentials a clock, clock in Hz, bytes a second of memory (H200: reached
# in practice, others: published).
FLOORS = {
    "NVIDIA H200": (132, 1.98e9, 4.3e12),
    "NVIDIA H100 80GB HBM3": (132, 1.98e9, 3.35e12),
    "NVIDIA A100-SXM4-80GB": (108, 1.41e9, 2.04e12),
    "NVIDIA A100-SXM4-40GB": (108, 1.41e9, 1.56e12),
}
# References that take minutes at large batches, and say nothing there.
SLOW = ("reference", "associative")


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("stage", choices=(*STAGES, "report"))
    parser.add_argument("--dry", action="store_true", help="tiny shapes on the CPU, interpreted")
    options = parser.parse_args()
    block = BlockShape(1, 2, 2, 4, 4, 2, 1) if options.dry else REFERENCE_BLOCK
    batches = (1,) if options.dry else (16, 1, 64, 4)
    options.blocks = {batch: dataclasses.replace(block, batch=batch) for batch in batches}
    options.repeats = 1 if options.dry else 20
    return options


class Results:
    """The lines of a stage, one for each thing that is measured."""

    def __init__(self, stage: str):
        self.path = OUT / f"{stage}.jsonl"
        OUT.mkdir(parents=True, exist_ok=True)
        self.path.touch()
        text = self.path.read_text()
        self.path.write_text(text[: text.rfind("\n") + 1])  # without a line that was cut off
        self.rows = read(stage)

    def measure(self, what: dict, run: Callable[[], dict]) -> None:
        """Adds what `run` finds, or that it failed, unless it is there."""
        if any(what.items() <= row.items() for row in self.rows):
            return
        try:
            row = what | run()
        except Exception as error:  # out of memory is a result too
            row = what | {"error": f"{type(error).__name__}: {error}".splitlines()[0][:120]}
        self.rows.append(row)
        print(row, flush=True)
        with self.path.open("a") as file:
            file.write(json.dumps(row) + "\n")


def read(stage: str) -> list[dict]:
    """Reads the rows that a stage has found so far."""
    with contextlib.suppress(FileNotFoundError):
        return [json.loads(line) for line in (OUT / f"{stage}.jsonl").read_text().splitlines()]
    return []


def device_ms(run: Callable, repeats: int) -> dict:
    """Measures milliseconds of one call: the GPU's busy time, or without one the wall clock's."""
    jax.block_until_ready(run())
    if jax.default_backend() != "gpu":
        start = time.perf_counter()
        for _ in range(repeats):
            jax.block_until_ready(run())
        return {"ms": (time.perf_counter() - start) * 1e3 / repeats, "clock": "wall"}
    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder):
            for _ in range(repeats):
                out = run()
            jax.block_until_ready(out)
        busy = sum(busy_ns(path) for path in Path(folder).rglob("*.xplane.pb"))
    return {"ms": busy / 1e6 / repeats, "clock": "device"}


def busy_ns(profile: Path) -> float:
    """Adds up the nanoseconds that a GPU's streams were busy."""
    planes = jax.profiler.ProfileData.from_file(str(profile)).planes
    lines = [line for p in planes if p.name.startswith("/device:GPU") for line in p.lines]
    return sum(e.duration_ns for x in lines if x.name.startswith("Stream") for e in x.events)


@contextlib.contextmanager
def names(options) -> Iterator[list[str]]:
    """Yields the implementations that are measured."""
    if not options.dry:
        yield list(available())
        return
    with interpreted():
        yield [name for name in ("xla", "triton") if name in available()]


def scans(options) -> Iterator[tuple[dict, Callable, tuple]]:
    """Yields what to measure of the scan: description, function and operands."""
    with names(options) as implementations:
        for batch, block in options.blocks.items():
            for operation in OPERATIONS:
                for name in implementations:
                    if name in SLOW and batch > 1:
                        continue
                    scan, operands = block_scan(operation, name), random_arrays(operation, block)
                    # The gradient by y may be anything of its shape, the first operand's.
                    passes = {
                        "forward": (scan, operands),
                        "forward and backward": (with_gradients(scan), (operands[0], *operands)),
                    }
                    for mode, (function, arrays) in passes.items():
                        what = {"operation": operation, "implementation": name}
                        yield what | {"batch": batch, "pass": mode}, function, arrays


def random_arrays(operation: str, block: BlockShape) -> tuple[jax.Array, ...]:
    """Draws what `block_scan` takes."""
    arrays = random_cross_operands(*dataclasses.astuple(block))
    if operation == "selective_scan":
        arrays = random_operands(block.selective).values()
    return tuple(map(jnp.asarray, arrays))


def times(options, results: Results) -> None:
    for what, function, operands in scans(options):

        def run(function=function, operands=operands, batch=what["batch"]):
            compiled = jax.jit(function).lower(*operands).compile()
            found = device_ms(functools.partial(compiled, *operands), options.repeats)
            found["ms"] = round(found["ms"], 4)
            return found | floor(options.blocks[batch])

        results.measure(what, run)


def floor(block: BlockShape) -> dict:
    """Computes the larger of two times: of the forward pass's exponentials, and of x once a
    direction in and y once out. It is empty for a GPU whose figures are not known.
    """
    device = jax.devices()[0].device_kind
    if device not in FLOORS:
        return {}
    multiprocessors, clock, bandwidth = FLOORS[device]
    sequence = block.batch * block.frames * block.joints * block.channels
    exponentials = block.state_steps / (multiprocessors * clock * 16)
    return {"floor, forward, ms": round(max(exponentials, 5 * sequence * 4 / bandwidth) * 1e3, 4)}


def memory(options, results: Results) -> None:
    for what, function, operands in scans(options):

        def run(function=function, operands=operands):
            account = jax.jit(function).lower(*operands).compile().memory_analysis()
            return {"temporary MiB": round(account.temp_size_in_bytes / 2**20, 1)}

        results.measure(what, run)


def training(options, results: Results) -> None:
    """Measures whole steps of a model: forward, backward and update."""
    from posemamba_jax.config import load_config

    for batch in (1,) if options.dry else (16, 1):
        for model in ("S",) if options.dry else ("B", "S"):
            for dtype in ("float32",) if options.dry else ("float32", "bfloat16"):
                settings = [f"--model.preset={model}", f"--model.dtype={dtype}"]
                settings += [f"--train.batch_size={batch}"]
                if options.dry:
                    settings += ["--model.dim=8", "--model.depth=1", "--data.clip_len=3"]

                def run(settings=settings, batch=batch):
                    config = load_config(["--data.source=synthetic", *settings])
                    found = device_ms(training_step(config), min(options.repeats, 5))
                    return found | {"clips a second": round(batch / found["ms"] * 1e3, 1)}

                results.measure({"model": model, "dtype": dtype, "batch": batch}, run)


def mamba(options, results: Results) -> None:
    """Measures mamba-ssm's kernel on the sequences of four directions."""
    if options.dry:
        return
    import torch

    for _ in range(100):  # it may still be being built
        try:
            import selective_scan_cuda  # noqa: F401

            break
        except ImportError:
            time.sleep(1)
    from mamba_ssm.ops.selective_scan_interface import selective_scan_fn

    for batch, block in options.blocks.items():
        for name, both in mamba_cases(block, torch, selective_scan_fn).items():
            for mode in ("forward", "forward and backward"):
                what = {"operation": "selective_scan", "implementation": name, "batch": batch}
                run = functools.partial(event_ms, torch, both, mode, options.repeats)
                results.measure(what | {"pass": mode}, run)


def mamba_cases(block: BlockShape, torch, selective_scan_fn) -> dict[str, Callable]:
    """Makes two candidates: the kernel alone, and with the copies to and from its sequences."""
    batch, frames, joints, channels, groups, states, _ = dataclasses.astuple(block)
    length, device = frames * joints, torch.device("cuda")
    generator = torch.Generator(device).manual_seed(0)
    make = functools.partial(torch.randn, generator=generator, device=device)
    x = make(batch, channels, frames, joints).requires_grad_()
    steps = make(batch, groups * channels, length).requires_grad_()
    A = (-torch.exp(make(groups * channels, states))).requires_grad_()
    B, C = (make(batch, groups, states, length).requires_grad_() for _ in range(2))
    D, bias = (make(groups * channels).requires_grad_() for _ in range(2))

    def four_directions(x):
        rows, columns = x.flatten(2), x.transpose(2, 3).flatten(2)
        return torch.cat([rows, columns, rows.flip(2), columns.flip(2)], 1)

    def merged(y):
        rows, columns, rows_back, columns_back = y.chunk(4, 1)
        by_row = rows + rows_back.flip(2)
        by_column = (columns + columns_back.flip(2)).unflatten(2, (joints, frames))
        return by_row + by_column.transpose(2, 3).flatten(2)

    stacked = four_directions(x).detach().requires_grad_()

    def kernel(u):
        return selective_scan_fn(u, steps, A, B, C, D, delta_bias=bias, delta_softplus=True)

    return {
        "mamba-ssm, kernel alone": lambda: kernel(stacked),
        "mamba-ssm with its copies": lambda: merged(kernel(four_directions(x))),
    }


def event_ms(torch, run: Callable, mode: str, repeats: int) -> dict:
    """Measures the median time between two CUDA events around a call."""
    spans = []
    for i in range(repeats + 1):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        with torch.set_grad_enabled(mode != "forward"):
            y = run()
            if mode != "forward":
                y.backward(torch.ones_like(y))
        end.record()
        torch.cuda.synchronize()
        spans += [begin.elapsed_time(end)] if i else []
    return {"ms": round(statistics.median(spans), 4), "clock": "device"}


def report() -> None:
    """Writes OUT/gpu.md and OUT/gpu.json."""
    about = environment("jax", "jaxlib", "jax-triton", "triton", "torch", "mamba-ssm")
    about |= {"device": jax.devices()[0].device_kind}
    found = {stage: read(stage) for stage in STAGES}
    parts = []
    for stage, rows in found.items():
        columns = dict.fromkeys(key for row in rows for key in row)
        if rows:
            parts.append(f"## {stage}\n\n{table(rows, {key: key for key in columns})}")
    with contextlib.suppress(FileNotFoundError):
        parts.append("## stages\n\n```\n" + (OUT / "stages.txt").read_text() + "```")
    OUT.mkdir(parents=True, exist_ok=True)
    (OUT / "gpu.json").write_text(json.dumps({"environment": about} | found, indent=1) + "\n")
    text = "\n\n".join([*parts, f"```\n{about}\n```"])
    (OUT / "gpu.md").write_text(text + "\n")
    print(f"wrote {OUT / 'gpu.md'} and gpu.json")


def main() -> None:
    options = parse()
    if options.stage == "report":
        return report()
    run = {"times": times, "training": training, "memory": memory, "mamba": mamba}[options.stage]
    try:
        run(options, Results(options.stage))
    except ImportError as error:
        sys.exit(f"error: {options.stage}: {error}")


if __name__ == "__main__":
    main()
