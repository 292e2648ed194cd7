"""The scan on the device at hand: time and memory of every implementation that can run there.

usage: python benchmarks/gpu.py [--batch 1,4,16,64] [--repeats 20] [--platform cpu]

A block's scan (243 frames of 17 joints, 4 x 256 channels, 16 states, rank 8) as `cross_scan` and as
`selective_scan`, forward and forward with all gradients, beside the floor that the exponentials and
the bytes set on this GPU (where its figures are known), and mamba-ssm's CUDA kernel, where it is
installed, with and without the copies of the four directions that it needs. Median of the repeats;
memory is the compiler's account of temporary buffers.

Writes benchmarks/results/gpu.{json,md}, unless --no-results. benchmarks/gpu.sh runs the tests on
the device and tunes the kernels before.
"""

from __future__ import annotations

import argparse
import functools
import statistics
import sys
import time

import jax
from common import environment, table, write_results
from selective_scan_jax import available
from selective_scan_jax.tune import cross_case, selective_case

# Multiprocessors of 16 exponentials a clock, clock in Hz, bytes a second of memory (H200: reached
# in practice, others: published).
FLOORS = {
    "NVIDIA H200": (132, 1.98e9, 4.3e12),
    "NVIDIA H100 80GB HBM3": (132, 1.98e9, 3.35e12),
    "NVIDIA A100-SXM4-80GB": (108, 1.41e9, 2.04e12),
    "NVIDIA A100-SXM4-40GB": (108, 1.41e9, 1.56e12),
}


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--platform", default="gpu", choices=("gpu", "cpu"))
    parser.add_argument("--batch", default="1,4,16,64")
    parser.add_argument("--implementations", help="names, comma-separated; all that can run")
    parser.add_argument("--repeats", type=int, default=20)
    parser.add_argument("--no-results", action="store_true", help="only print")
    for name, size in (("frames", 243), ("joints", 17), ("channels", 256), ("state", 16)):
        parser.add_argument(f"--{name}", type=int, default=size)
    parser.add_argument("--rank", type=int, default=8)
    return parser.parse_args()


OPTIONS = parse()
jax.config.update("jax_platforms", {"gpu": "cuda", "cpu": "cpu"}[OPTIONS.platform])


def median_ms(run) -> float:
    jax.block_until_ready(run())
    times = []
    for _ in range(OPTIONS.repeats):
        start = time.perf_counter()
        jax.block_until_ready(run())
        times.append(time.perf_counter() - start)
    return round(statistics.median(times) * 1e3, 3)


def floor_ms(batch: int, device: str) -> float | None:
    """The larger of the times for the forward pass's exponentials and for x once a direction in and
    y once out."""
    if device not in FLOORS:
        return None
    multiprocessors, clock, bandwidth = FLOORS[device]
    sequence = batch * OPTIONS.frames * OPTIONS.joints * OPTIONS.channels
    exponentials = 4 * sequence * OPTIONS.state / (multiprocessors * clock * 16)
    return round(max(exponentials, 5 * sequence * 4 / bandwidth) * 1e3, 3)


def measure(operation: str, make, name: str, batch: int, device: str) -> dict:
    both, operands = make(OPTIONS, batch, name)

    def forward(*arrays):
        return both(*arrays)[0]

    row = {"operation": operation, "implementation": name, "batch": batch}
    for mode, function in (("forward", forward), ("forward and backward", both)):
        try:
            compiled = jax.jit(function).lower(*operands).compile()
            row[f"{mode} ms"] = median_ms(functools.partial(compiled, *operands))
            temporary = compiled.memory_analysis().temp_size_in_bytes
            row[f"{mode} temporary MiB"] = round(temporary / 2**20, 1)
        except Exception as error:  # out of memory is a result too
            row[f"{mode} ms"] = str(error).splitlines()[0][:60]
    row["floor, forward, ms"] = floor_ms(batch, device)
    return row


def measure_mamba_ssm(batch: int) -> list[dict]:
    """mamba-ssm's kernel on the sequences of four directions, alone and with what makes them."""
    try:
        import torch
        from mamba_ssm.ops.selective_scan_interface import selective_scan_fn

        if not torch.cuda.is_available():
            raise ImportError("no CUDA device in PyTorch")
    except ImportError as error:
        print(f"mamba-ssm's CUDA kernel is not measured: {error}", file=sys.stderr)
        return []
    frames, joints, channels = OPTIONS.frames, OPTIONS.joints, OPTIONS.channels
    length, groups, device = frames * joints, 4, torch.device("cuda")
    generator = torch.Generator(device).manual_seed(0)
    make = functools.partial(torch.randn, generator=generator, device=device)
    x = make(batch, channels, frames, joints).requires_grad_()
    steps = make(batch, groups * channels, length).requires_grad_()
    A = (-torch.exp(make(groups * channels, OPTIONS.state))).requires_grad_()
    B, C = (make(batch, groups, OPTIONS.state, length).requires_grad_() for _ in range(2))
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

    rows = []
    for name, run in (
        ("mamba-ssm, kernel alone", lambda: kernel(stacked)),
        ("mamba-ssm with its copies", lambda: merged(kernel(four_directions(x)))),
    ):
        row = {"operation": "selective_scan", "implementation": name, "batch": batch}
        for mode in ("forward", "forward and backward"):
            times = []
            for i in range(OPTIONS.repeats + 1):
                torch.cuda.synchronize()
                start = time.perf_counter()
                with torch.set_grad_enabled(mode != "forward"):
                    y = run()
                    if mode != "forward":
                        y.backward(torch.ones_like(y))
                torch.cuda.synchronize()
                if i:
                    times.append(time.perf_counter() - start)
            row[f"{mode} ms"] = round(statistics.median(times) * 1e3, 3)
        rows.append(row)
    return rows


def main() -> None:
    device = jax.devices()[0].device_kind
    chosen = OPTIONS.implementations
    names = chosen.split(",") if chosen else available()
    rows = []
    for batch in map(int, OPTIONS.batch.split(",")):
        for operation, make in (("cross_scan", cross_case), ("selective_scan", selective_case)):
            for name in names:
                rows.append(measure(operation, make, name, batch, device))
                print(rows[-1], flush=True)
        if OPTIONS.platform == "gpu":
            rows += measure_mamba_ssm(batch)
    columns = dict.fromkeys(key for row in rows for key in row)
    about = environment("jax", "jaxlib", "jax-triton", "triton", "torch", "mamba-ssm")
    data = {"environment": about | {"device": device}, "rows": rows}
    text = f"{table(rows, {key: key for key in columns})}\n\n```\n{data['environment']}\n```"
    print(text)
    if not OPTIONS.no_results:
        write_results("gpu", data, text)


if __name__ == "__main__":
    main()
