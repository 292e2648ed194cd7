"""What the Triton kernels cost on an H100 or H200, modelled from their machine code without a GPU.

usage: python benchmarks/gpu_static.py [--family cross-256,...] [--capability 90]

Compiles every kernel at the sizes that the heuristic chooses among, for the scan of a block of B
and L (cross-256), of S (cross-128) and of the same sequences as a `selective_scan`: registers,
spills, and cycles of the loops over time by the latency model (`selective_scan_jax.triton.latency`,
which says what it takes into account). From these it models the time of the forward and the
backward kernels at five batch sizes. Nothing here was measured on a GPU; expect 30 % either way.

Writes benchmarks/results/gpu_static.{json,md} after every kernel, and takes up where it was cut
off.
"""

from __future__ import annotations

import argparse
import functools
import json

import jax
import jax.numpy as jnp
from common import RESULTS, environment, table, write_results
from selective_scan_jax import cross_scan, selective_scan, tuning
from selective_scan_jax.triton import static
from selective_scan_jax.triton.heuristic import Config, heuristic

FRAMES, JOINTS, DIRECTIONS, STATES = 243, 17, 4, 16
LENGTH = FRAMES * JOINTS
BATCHES = (1, 4, 16, 64, 256)
FAMILIES = {"cross-256": 256, "cross-128": 128, "selective-256": 256}
# States of a program and steps in flight, forward and backward, that are compiled.
STATES_AND_GROUPS = ((16, 3, 8, 3), (4, 6, 4, 3))
# mamba-ssm's CUDA kernel at B's sizes if it issued an instruction a cycle: its instructions a
# state and step, forward and backward (of its machine code), and L filled up to blocks of 2048.
MAMBA_INSTRUCTIONS, MAMBA_LENGTH = (38, 101), 3 * 2048


def scan_of(family: str):
    """A scan and its operands, of one clip."""
    channels, f32 = FAMILIES[family], jnp.float32
    if family.startswith("selective"):
        width = DIRECTIONS * channels
        shapes = 2 * [(1, LENGTH, width)] + [(width, STATES)]
        shapes += 2 * [(1, LENGTH, DIRECTIONS, STATES)] + 2 * [(width,)]

        def scan(u, delta, A, B, C, D, bias):
            options = {"delta_softplus": True, "implementation": "triton"}
            return selective_scan(u, delta, A, B, C, D, delta_bias=bias, **options)
    else:
        grid, weights = (1, FRAMES, JOINTS), (DIRECTIONS, channels)
        shapes = [(*grid, channels), *((*grid, DIRECTIONS, n) for n in (channels // 32, 16, 16))]
        shapes += [(*weights, channels // 32), weights, (*weights, STATES), weights]
        scan = functools.partial(cross_scan, order="limbs", implementation="triton")
    return scan, [jax.ShapeDtypeStruct(shape, f32) for shape in shapes]


def with_gradients(scan):
    def run(*operands):
        y, pull_back = jax.vjp(scan, *operands)
        return pull_back(y)

    return run


def shape_of(family: str, batch: int) -> dict[str, int]:
    """The shape as the heuristic sees it."""
    channels = FAMILIES[family]
    rank = 0 if family.startswith("selective") else channels // 32
    sizes = {"batch": batch, "length": LENGTH, "channels": channels, "directions": DIRECTIONS}
    return sizes | {"state": STATES, "rank": rank}


def figures(rows: list[dict], family: str) -> dict[tuple[str, int], static.Figures]:
    """The figures of a family's kernels, as `static.modelled_ms` takes them."""
    return {
        (row["kernel"], row["states"]): static.Figures(
            row["group"], row["registers"], row["spilled"], tuple(row["cycles"])
        )
        for row in rows
        if row["family"] == family
    }


def floor_ms(family: str, batch: int) -> float:
    """Time for the forward pass's exponentials, the larger of the two bounds."""
    state_steps = batch * LENGTH * DIRECTIONS * FAMILIES[family] * STATES
    return state_steps / (132 * 16 * static.CLOCK) * 1e3


def mamba_ms(family: str, batch: int, backward: bool) -> float:
    """mamba-ssm's kernel if every scheduler issued an instruction a cycle, without its copies."""
    state_steps = batch * MAMBA_LENGTH * DIRECTIONS * FAMILIES[family] * STATES
    instructions = state_steps * MAMBA_INSTRUCTIONS[backward] / 32
    return instructions / (static.SCHEDULERS * static.CLOCK) * 1e3


def times(rows: list[dict]) -> list[dict]:
    """Modelled times of what the heuristic chooses, for the families that are complete."""
    found = []
    for family in FAMILIES:
        kernels = figures(rows, family)
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


def write(rows: list[dict], capability: int) -> None:
    modelled = times(rows) if capability == 90 else []
    about = environment("jax", "jax-triton", "triton")
    head = (
        f"Compute capability {capability / 10}, `python benchmarks/gpu_static.py`: modelled from "
        "machine code, not measured. Cycles are those of a scheduler for one step of each of its "
        "1, 2, ... warps, as many as the registers allow; a warp has 32 channels.\n\n"
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
    name = "gpu_static" + ("" if capability == 90 else f"_sm{capability}")
    write_results(name, {"environment": about, "kernels": rows, "times": modelled}, text)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--capability", type=int, default=90, help="90 for compute capability 9.0")
    parser.add_argument("--family", default=",".join(FAMILIES))
    parser.add_argument("--again", action="store_true", help="forget what is there")
    options = parser.parse_args()
    name = "gpu_static" + ("" if options.capability == 90 else f"_sm{options.capability}")
    path = RESULTS / f"{name}.json"
    rows = [] if options.again or not path.exists() else json.loads(path.read_text())["kernels"]
    for family in options.family.split(","):
        scan, operands = scan_of(family)
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
                launches = static.launches(with_gradients(scan), *operands)
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
                write(rows, options.capability)
    write(rows, options.capability)


if __name__ == "__main__":
    main()
