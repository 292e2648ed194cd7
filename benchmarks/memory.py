"""Memory of a block, from the compiler's programs; nothing is run.

usage: python benchmarks/memory.py scan [--batch 16] [--topology v5e:2x2]
       python benchmarks/memory.py kept [--model B]

scan: what the scan of one block of PoseMamba-B (243 frames of 17 joints, 256 channels, 4
directions, 16 states, step projection of rank 8), forward and forward with all gradients, allocates
beside its arguments and results (`temp_size_in_bytes`). It is compiled for this CPU and, with
libtpu installed, ahead of time for one chip of a TPU slice that need not be there:

  cross_scan          the fused operation
  selective_scan      the same implementation's selective scan on stacked x and delta, one call for
                      each sense of time (`composed.cross_scan`)
  everything stacked  x, delta and y of the four directions as whole arrays, reversed ones flipped,
                      one call: what a scan kernel asks for that knows no directions

kept: bytes that the forward pass of a training step keeps for the backward pass, per block and
clip, as the model is traced for a TPU, by what is computed again (`model.remat`).

Writes benchmarks/results/scan_memory.{json,md} (other sizes than the default's are only printed)
and kept_for_backward.{json,md}.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import functools
import importlib
import importlib.util
import os
import sys
import time

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")

import jax
import jax.numpy as jnp
from common import block_structs, environment, table, write_results
from jax.sharding import SingleDeviceSharding
from selective_scan_jax import (
    ScanOrder,
    available,
    backends,
    composed,
    cross_scan,
    implementations,
    limb_term,
    lowering_for,
    target_of,
)
from selective_scan_jax.operands import CrossScanOperands, ScanOperands
from selective_scan_jax.target import Target
from selective_scan_jax.testing import REFERENCE_BLOCK, with_gradients

from posemamba_jax.model import PoseMamba, PoseMambaConfig

ORDER = ScanOrder.named("limbs")
BATCH, TOPOLOGY = 16, "v5e:2x2"
CANDIDATES = {"cpu": ("xla", "cpu"), "tpu": ("xla", "mosaic_tpu")}
# What a GPU needs is known only where XLA can compile for one.
NEEDS_A_GPU = ("triton", "mosaic_gpu")


def everything_stacked(selective_scan, operands, *, order):
    """Makes the cross scan around a scan that takes one sequence in one sense."""
    x, dt, B, C, dt_weight, dt_bias, A, D = operands
    batch, frames, joints, channels = x.shape
    with_limbs = limb_term(x, order)

    def along(k, a):
        sequence = order.directions[k].to_sequence(a)
        return jnp.flip(sequence, 1) if order.directions[k].reverse else sequence

    def stacked(per_direction):
        ks = range(len(order.directions))
        return jnp.stack([along(k, per_direction(k)) for k in ks], axis=2)

    u = stacked(lambda k: with_limbs if order.takes_limb_term(k) else x)
    raw = jnp.einsum(
        "blkr,kcr->blkc",
        stacked(lambda k: dt[:, :, :, k]),
        dt_weight,
        precision=jax.lax.Precision.HIGHEST,
    )
    flat = (batch, frames * joints, -1)
    # A kernel's operands and results are whole arrays.
    u, delta = jax.lax.optimization_barrier((u, jax.nn.softplus(raw + dt_bias)))
    one_scan = ScanOperands(
        u=u.reshape(flat),
        delta=delta.reshape(flat),
        A=A.reshape(-1, A.shape[-1]),
        B=stacked(lambda k: B[:, :, :, k]),
        C=stacked(lambda k: C[:, :, :, k]),
        D=D.reshape(-1),
    )
    y, _ = selective_scan(one_scan, delta_softplus=False, reverse=False)
    ys = jax.lax.optimization_barrier(y).reshape(u.shape)
    total = jnp.zeros_like(x)
    for k, direction in enumerate(order.directions):
        y = jnp.flip(ys[:, :, k], 1) if direction.reverse else ys[:, :, k]
        total = total + direction.to_grid(y, frames, joints)
    return total


def routes(implementation: str) -> dict:
    """Makes the three ways to scan the grid with one implementation."""
    module = importlib.import_module(backends._BACKENDS[implementation].module)

    def around_selective_scan(compose):
        return lambda *arrays: compose(
            module.selective_scan, CrossScanOperands(*arrays), order=ORDER
        )

    return {
        "cross_scan": functools.partial(cross_scan, order=ORDER, implementation=implementation),
        "selective_scan": around_selective_scan(composed.cross_scan),
        "everything stacked": around_selective_scan(everything_stacked),
    }


def temporaries(scan, arrays) -> dict[str, float]:
    """Measures the MiB that the compiled programs allocate, by mode."""
    programs = {
        "forward": jax.jit(scan).lower(*arrays),
        "both": jax.jit(with_gradients(scan)).lower(arrays[0], *arrays),
    }
    return {
        mode: round(program.compile().memory_analysis().temp_size_in_bytes / 2**20, 1)
        for mode, program in programs.items()
    }


def measure(platform: str, sharding, device, batch: int) -> list[dict]:
    rows = []
    arrays = block_structs("cross_scan", dataclasses.replace(REFERENCE_BLOCK, batch=batch))
    placed = [jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=sharding) for a in arrays]
    with contextlib.ExitStack() as stack:
        if platform != "cpu":
            stack.enter_context(lowering_for(target_of(device)))
        for implementation in CANDIDATES[platform]:
            if implementation not in available():
                reason = implementations().get(implementation, "there is no such implementation")
                print(f"{platform}: {implementation} left out: {reason}", file=sys.stderr)
                continue
            for route, scan in routes(implementation).items():
                start = time.perf_counter()
                found = temporaries(scan, placed)
                seconds = time.perf_counter() - start
                label = f"{platform}, {implementation}, {route}"
                print(f"{label}: {found}, compiled in {seconds:.0f} s", file=sys.stderr, flush=True)
                row = {"device": device.device_kind, "implementation": implementation}
                rows.append(row | {"route": route} | {f"{k}_mib": v for k, v in found.items()})
    return rows


def add_ratios(rows: list[dict]) -> None:
    """Puts cross_scan's memory over each other route's into that route's row."""
    fused = {(r["device"], r["implementation"]): r for r in rows if r["route"] == "cross_scan"}
    for row in rows:
        base = fused[row["device"], row["implementation"]]
        if row is not base:
            for mode in ("forward", "both"):
                row[f"{mode}_ratio"] = round(base[f"{mode}_mib"] / row[f"{mode}_mib"], 3)


def scan_study(args) -> None:
    """Writes the results of `scan`."""
    device = jax.devices("cpu")[0]
    rows = measure("cpu", SingleDeviceSharding(device), device, args.batch)
    if args.topology != "none" and importlib.util.find_spec("libtpu"):
        from jax.experimental import topologies

        topology = topologies.get_topology_desc(platform="tpu", topology_name=args.topology)
        chip = topology.devices[0]
        rows += measure("tpu", SingleDeviceSharding(chip), chip, args.batch)
    add_ratios(rows)

    about = environment("jax", "jaxlib", "libtpu")
    block = dataclasses.replace(REFERENCE_BLOCK, batch=args.batch)
    one_stack = 4 * block.state_steps / block.state / 2**20
    columns = {
        "device": "compiled for",
        "implementation": "implementation",
        "route": "route",
        "forward_mib": "forward, MiB",
        "forward_ratio": "cross_scan's share",
        "both_mib": "forward and gradients, MiB",
        "both_ratio": "cross_scan's share",
    }
    markdown = "\n".join(
        [
            "# Temporary memory of a block's scan",
            "",
            f"batch {block.batch}, {block.frames} frames, {block.joints} joints, {block.channels} "
            f"channels, {block.directions} directions, {block.state} states, rank {block.rank}, "
            "float32; the compiler's `temp_size_in_bytes`, which leaves out arguments and results. "
            f"One stacked array of the four directions is {one_stack:.0f} MiB.",
            "",
            table(rows, columns),
            "",
            f"Not measured without a GPU: {', '.join(NEEDS_A_GPU)} (XLA's memory analysis needs "
            "the device it compiles for).",
            "",
            "Made by `python benchmarks/memory.py scan`: "
            + ", ".join(f"{k} {v}" for k, v in about.items()),
        ]
    )
    print(markdown)
    if (args.batch, args.topology) == (BATCH, TOPOLOGY):
        write_results("scan_memory", {"environment": about, "rows": rows}, markdown)


def kept_bytes(config: PoseMambaConfig, clips: int) -> int:
    """Counts the bytes of all that a forward pass keeps of a batch, parameters included."""
    model = PoseMamba(config)
    poses = jax.ShapeDtypeStruct((clips, config.num_frames, config.num_joints, 2), jnp.float32)
    params = jax.eval_shape(model.init, jax.random.key(0), poses)

    def forward(params, poses):
        rngs = {"dropout": jax.random.key(0)}
        return model.apply(params, poses, deterministic=False, rngs=rngs)

    _, pull_back = jax.eval_shape(functools.partial(jax.vjp, forward), params, poses)
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(pull_back))


def kept_study(args) -> None:
    """Writes the results of `kept`: what a second clip adds, so that parameters are not counted."""
    rows = []
    for dtype in ("float32", "bfloat16"):
        row = {"dtype": dtype}
        for remat in ("none", "layers", "block"):
            config = PoseMambaConfig.preset(
                args.model, implementation="mosaic_tpu", dtype=dtype, remat=remat
            )
            with lowering_for(Target("tpu", "TPU v5 lite")):
                clip = kept_bytes(config, 2) - kept_bytes(config, 1)
            row[f"{remat}, MB"] = round(clip / (2 * config.depth) / 1e6, 1)
        rows.append(row)
    about = environment("jax", "jaxlib")
    text = (
        f"What the forward pass of {args.model} keeps for the backward pass, per block and clip, "
        "by `model.remat`: traced for a TPU, `python benchmarks/memory.py kept`.\n\n"
        f"{table(rows, {key: key for key in rows[0]})}\n\n```\n{about}\n```"
    )
    print(text)
    write_results("kept_for_backward", {"environment": about, "rows": rows}, text)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    studies = parser.add_subparsers(required=True)
    scan = studies.add_parser("scan")
    scan.add_argument("--topology", default=TOPOLOGY, help="a TPU slice, or none")
    scan.add_argument("--batch", type=int, default=BATCH)
    scan.set_defaults(run=scan_study)
    kept = studies.add_parser("kept")
    kept.add_argument("--model", default="B")
    kept.set_defaults(run=kept_study)
    args = parser.parse_args()
    args.run(args)


if __name__ == "__main__":
    main()
