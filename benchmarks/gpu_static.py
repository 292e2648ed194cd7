"""What the Triton kernels cost on a GPU, read off their machine code; needs no GPU.

usage: python benchmarks/gpu_static.py [--capability 90]

For the gradient of a block (243 frames of 17 joints, 4 x 256 channels, 16 states, rank 8) and
of the same scan as `selective_scan`: registers, spills, warps that the registers let a
multiprocessor hold, machine instructions of the loops over time for one state, channel and step,
and a time on an H200 estimated from bytes, exponentials and instructions. The estimate takes every
unit to be busy all the time and the largest of the three to hide the others; warps there are fewer
of than schedulers leave some of them idle, which it counts. Nothing here was measured on a GPU.

Writes benchmarks/results/gpu_static.{json,md}.
"""

from __future__ import annotations

import argparse
import functools

import jax
import jax.numpy as jnp
from common import environment, table, write_results
from selective_scan_jax import cross_scan, selective_scan, tuning
from selective_scan_jax.triton import static as triton_static
from selective_scan_jax.triton.scan import Config

FRAMES, JOINTS, CHANNELS, DIRECTIONS, STATES, RANK = 243, 17, 256, 4, 16, 8
LENGTH = FRAMES * JOINTS

# An H200: multiprocessors with four schedulers each, clock, bytes a second; a multiprocessor
# computes 16 exponentials a clock, a scheduler issues one instruction for 32 threads.
MULTIPROCESSORS, SCHEDULERS, CLOCK, BANDWIDTH = 132, 4, 1.98e9, 4.3e12
EXPONENTIALS = 16


def cross(batch: int):
    grid = (batch, FRAMES, JOINTS)
    shapes = [(*grid, CHANNELS), (*grid, DIRECTIONS, RANK)] + 2 * [(*grid, DIRECTIONS, STATES)]
    shapes += [(DIRECTIONS, CHANNELS, RANK), (DIRECTIONS, CHANNELS)]
    shapes += [(DIRECTIONS, CHANNELS, STATES), (DIRECTIONS, CHANNELS)]
    scan = functools.partial(cross_scan, order="limbs", implementation="triton")
    return scan, [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]


def selective(batch: int):
    channels = DIRECTIONS * CHANNELS
    shapes = 2 * [(batch, LENGTH, channels)] + [(channels, STATES)]
    shapes += 2 * [(batch, LENGTH, DIRECTIONS, STATES)] + 2 * [(channels,)]
    scan = functools.partial(selective_scan, delta_softplus=True, implementation="triton")

    def with_bias(u, delta, A, B, C, D, bias):
        return scan(u, delta, A, B, C, D, delta_bias=bias)

    return with_bias, [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]


def with_gradients(scan):
    def run(*operands):
        y, pull_back = jax.vjp(scan, *operands)
        return pull_back(y)

    return run


def describe(operation: str, batch: int, kernel: triton_static.Compiled) -> dict:
    constants, launch = kernel.launch.constants, kernel.launch
    states = constants["BLOCK_N"] * constants["PER"]
    loops = [loop for loop in kernel.loops if loop["MUFU"] >= states]
    exponentials = sum(loop["MUFU"] / (loop["MUFU"] // states * states) for loop in loops)
    if constants.get("UNROLL", 1) > 1:  # the loop and its remainder
        exponentials /= len(loops)
    state_steps = batch * LENGTH * DIRECTIONS * CHANNELS * STATES
    warps = launch.warps * launch.grid[0] * launch.grid[1] * launch.grid[2]
    busy = min(1, warps / (MULTIPROCESSORS * SCHEDULERS))
    threads = MULTIPROCESSORS * CLOCK * busy
    instructions = kernel.per_state_step()
    row = {
        "operation": operation,
        "batch": batch,
        "kernel": launch.kernel,
        "channels a thread": constants["PER"],
        "states a thread": constants["BLOCK_N"],
        "registers": kernel.registers,
        "spilled bytes": kernel.stack + kernel.local,
        "warps": warps,
        "warps a multiprocessor can hold": kernel.warps_per_multiprocessor(),
        "instructions": round(instructions, 2),
        "exponentials ms": state_steps * exponentials / (threads * EXPONENTIALS) * 1e3,
        "instructions ms": state_steps * instructions / (threads * SCHEDULERS * 32) * 1e3,
        "bytes ms": bytes_moved(operation, batch, launch) / BANDWIDTH * 1e3,
    }
    row["estimate ms"] = max(row[f"{x} ms"] for x in ("exponentials", "instructions", "bytes"))
    if launch.kernel == "scan_forward":
        row["floor ms"] = state_steps / (MULTIPROCESSORS * CLOCK * EXPONENTIALS) * 1e3
    return {k: round(v, 3) if isinstance(v, float) else v for k, v in row.items()}


def bytes_moved(operation: str, batch: int, launch) -> int:
    """Bytes that have to come from or go to memory: what is read by several programs at a time is
    counted once, and the backward kernel's kept states are taken to stay in the cache."""
    constants = launch.constants
    parts = STATES // constants["BLOCK_N"]
    sequence = batch * LENGTH * DIRECTIONS * CHANNELS
    rows = batch * LENGTH * DIRECTIONS
    steps = rows * RANK if operation == "cross_scan" else sequence
    boundaries = sequence * STATES // constants["CHUNK"]
    if launch.kernel == "scan_forward":
        numbers = sequence + steps + 2 * rows * STATES + parts * sequence + boundaries
    else:
        sums = rows * launch.grid[0] * (2 * STATES + (RANK if operation == "cross_scan" else 0))
        gradients = 2 * sequence if operation == "selective_scan" else sequence
        numbers = 2 * sequence + steps + 2 * rows * STATES + boundaries + parts * gradients + sums
    return 4 * numbers


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--capability", type=int, default=90, help="90 for compute capability 9.0")
    options = parser.parse_args()
    wide = Config(chunk=32, channels=4, unroll=4, backward_channels=2)
    cases = [(1, None), (16, None), (64, None), (64, wide)]
    rows = []
    for operation, make in (("cross_scan", cross), ("selective_scan", selective)):
        for batch, config in cases:
            scan, operands = make(batch)
            with tuning.trying({"triton_scan": config} if config else {}):
                kernels = triton_static.compiled(
                    with_gradients(scan), *operands, capability=options.capability
                )
            for kernel in kernels:
                row = describe(operation, batch, kernel)
                row["chosen by"] = "hand" if config else "heuristic"
                rows.append(row)
                print(row, flush=True)
    data = {
        "environment": environment("jax", "jax-triton", "triton"),
        "capability": options.capability,
        "kernels": rows,
    }
    columns = dict.fromkeys(key for row in rows for key in row)
    text = (
        "Static figures from machine code, `python benchmarks/gpu_static.py`; instructions are per "
        "state, channel and step, those of the backward kernel with the recomputation of the "
        "states and the sums over channels. Times are estimates for an H200, not measurements.\n\n"
        + table(rows, {key: key for key in columns})
        + f"\n\n```\n{data['environment']}\n```"
    )
    write_results("gpu_static", data, text)


if __name__ == "__main__":
    main()
