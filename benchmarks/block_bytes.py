"""Bytes that a block moves on a GPU, from the program compiled for one; no GPU, nothing is run.

usage: python benchmarks/block_bytes.py [COMMIT] [--model B] [--batch 16]

One block, in float32 with the Triton scan, is compiled ahead of time for an H100, the forward pass
alone and with all gradients, and every operation of the program adds the arrays that it reads and
writes. Of an operand of which a fused operation takes slices, only these count. Products are
cuBLAS calls: which of them XLA would fuse with their surroundings it decides by timing them on the
GPU. What the scan's kernels read and write is counted apart; they are not compiled, a call with the
same operands and results stands for each.

With a commit, that tree's block is counted by the same code beside this one's, which needs no more
of it than the model and the package of scans. Needs JAX's CUDA plugin whole, which the extra of
CUDA 12 or 13 brings. Writes benchmarks/results/block_bytes.{json,md}.
"""

from __future__ import annotations

import argparse
import collections
import json
import math
import os
import re
import subprocess
import sys
import unittest.mock
from pathlib import Path

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax
import jax.numpy as jnp
from common import ROOT, checked_out, environment, import_path, table, write_results
from jax.experimental import topologies
from jax.sharding import SingleDeviceSharding
from selective_scan_jax import Target, lowering_for
from selective_scan_jax.testing import REFERENCE_BLOCK

DEVICE = Target("gpu", "NVIDIA H100 80GB HBM3", 90)
# The H100 for XLA's compiler, by NVIDIA's data sheet and programming guide.
H100 = """
gpu_device_info {
  cuda_compute_capability { major: 9 }
  core_count: 132
  fpus_per_core: 128
  clock_rate_ghz: 1.98
  threads_per_warp: 32
  threads_per_block_limit: 1024
  threads_per_core_limit: 2048
  registers_per_block_limit: 65536
  registers_per_core_limit: 65536
  shared_memory_per_block: 49152
  shared_memory_per_block_optin: 232448
  shared_memory_per_core: 233472
  l2_cache_size: 52428800
  memory_bandwidth: 3352320000000
  device_memory_size: 84942979072
  block_dim_limit_x: 2147483647
  block_dim_limit_y: 65535
  block_dim_limit_z: 65535
}
platform_name: "CUDA"
device_description_str: "NVIDIA H100 80GB HBM3"
runtime_version { major: 12 minor: 9 }
dnn_version_info { major: 9 minor: 10 }
"""

# Others, such as what a product is given to work in (s8), do not count.
BYTES = {"f32": 4, "s32": 4, "u32": 4, "bf16": 2, "f16": 2, "u8": 1, "pred": 1}
FREE = {"parameter", "constant", "tuple", "get-tuple-element", "bitcast"}
# What a fused operation that only moves numbers is made of.
MOVES = FREE | {
    "broadcast", "concatenate", "copy", "convert", "dynamic-slice", "gather", "iota", "pad",
    "reshape", "reverse", "slice", "transpose",
}  # fmt: skip
SLICES = {"slice", "dynamic-slice", "gather"}
INSTRUCTION = re.compile(r"\s+(?:ROOT )?%([\w.\-]+) = (\(.*?\)|\S+) ([\w\-]+)\((.*?)\)(?:, |$)")
SCAN = "scan"
PRODUCTS = "products"
MOVED = "copies, transposes, stacks, pads"
# Other operations by the layer that they come from, by the first pattern that fits; gates and
# activations are often fused with the layer beside them.
LAYERS = (
    ("norms and gate", r"norm|/scan/mul"),
    ("convolution and SiLU", r"/conv/|silu"),
    ("between projections and scan", r"scan\._scan"),
    ("MLP and residuals", r""),
)
KINDS = (PRODUCTS, MOVED, *(name for name, _ in LAYERS))


def size_of(shape: str) -> int:
    """Counts the bytes of an array or a tuple of arrays, from its shape in a program's text."""
    arrays = re.findall(r"(\w+)\[([\d,]*)\]", shape)
    counts = ((kind, math.prod(int(n) for n in dims.split(",") if n)) for kind, dims in arrays)
    return sum(BYTES.get(kind, 0) * count for kind, count in counts)


def computations(program: str) -> dict[str, list[tuple]]:
    """Reads the text of a compiled program.

    Returns:
      By computation, "ENTRY" being the program itself: its operations as (name, shape, opcode,
      names of operands, line).
    """
    found, operations = {}, []
    for line in program.splitlines():
        if (head := re.match(r"(ENTRY )?%([\w.\-]+) \(.*\{$", line)) is not None:
            operations = found["ENTRY" if head[1] else head[2]] = []
        elif (match := INSTRUCTION.match(line)) is not None:
            name, shape, opcode, operands = match.groups()
            operations.append((name, shape, opcode, re.findall(r"%([\w.\-]+)", operands), line))
    return found


def read_of_parameters(operations: list[tuple]) -> list[int]:
    """Counts what a fused operation reads of each parameter."""
    users = collections.defaultdict(list)
    for name, shape, opcode, operands, _ in operations:
        for operand in operands:
            users[operand].append((name, shape, opcode))

    def read(name: str, whole: int) -> int:
        parts = 0
        for user, shape, opcode in users[name]:
            if opcode == "bitcast":
                parts += read(user, whole)
            elif opcode in SLICES:
                parts += size_of(shape)
            else:
                return whole
        return min(parts, whole)

    found = {}
    for name, shape, opcode, _, line in operations:
        if opcode == "parameter":
            number = int(re.search(r"parameter\((\d+)\)", line)[1])
            found[number] = read(name, size_of(shape))
    return [found[i] for i in range(len(found))]


def kind_of(opcode: str, line: str, fused: list[tuple]) -> str:
    """Names the kind of an operation of the program, `fused` being what a fusion is made of."""
    target = re.search(r'custom_call_target="([^"]*)"', line)
    if target is not None:
        return SCAN if "triton_kernel_call" in target[1] else PRODUCTS
    inside = {opcode for _, _, opcode, _, _ in fused} or {opcode}
    if "dot" in inside:
        return PRODUCTS
    if inside <= MOVES:
        return MOVED
    scope = re.search(r'op_name="([^"]*)"', line)
    return next(n for n, pattern in LAYERS if re.search(pattern, scope[1] if scope else ""))


def bytes_moved(program: str) -> collections.Counter:
    """Counts the bytes that a program's operations read and write, by kind of operation."""
    bodies = computations(program)
    sizes, moved = {}, collections.Counter()
    for name, shape, opcode, operands, line in bodies["ENTRY"]:
        sizes[name] = size_of(shape)
        if opcode in FREE:
            continue
        called = re.search(r"calls=%([\w.\-]+)", line)
        fused = bodies[called[1]] if called else []
        reads = read_of_parameters(fused) if fused else [sizes[x] for x in operands]
        # The kernels of the scan are given an array again for each one that is absent.
        read = dict(zip(operands, reads, strict=True))
        moved[kind_of(opcode, line, fused)] += sizes[name] + sum(read.values())
    return moved


def call_of_a_kernel(*inputs, out_shape, **options):
    """Stands for `jax_triton.triton_call`: the same call, of a kernel that is never compiled."""
    call = {"custom_call_api_version": 2, "legacy_backend_config": ""}
    return jax.ffi.ffi_call("triton_kernel_call", out_shape, **call)(*inputs)


def programs(model: str, batch: int) -> dict[str, str]:
    """Compiles a block of the tree that is imported, by pass."""
    from posemamba_jax.model import PoseMambaConfig
    from posemamba_jax.model.block import Block

    topology = {"target_config": H100, "topology": "1x1x1"}
    device = topologies.get_topology_desc("", "cuda", **topology).devices[0]
    on = SingleDeviceSharding(device)
    config = PoseMambaConfig.preset(model, implementation="triton")
    block = Block(config, True)
    shape = (batch, REFERENCE_BLOCK.frames, REFERENCE_BLOCK.joints, config.dim)
    h = jax.ShapeDtypeStruct(shape, jnp.float32, sharding=on)

    def forward(params, h):
        return block.apply(params, h, 0.0)

    def both(params, h):
        y, pull_back = jax.vjp(forward, params, h)
        # As in the model's loops over depths: what is kept goes from one to the other by memory.
        return y, jax.lax.optimization_barrier(pull_back)(y)

    with lowering_for(DEVICE), unittest.mock.patch("jax_triton.triton_call", call_of_a_kernel):
        params = jax.eval_shape(lambda h: block.init(jax.random.key(0), h, 0.0), h)
        params = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=on), params)
        return {
            name: jax.jit(function).lower(params, h).compile().as_text()
            for name, function in (("forward", forward), ("forward and backward", both))
        }


def count(tree: Path, args) -> dict[str, dict[str, int]]:
    """Counts the block of a tree in a process of its own, by pass and kind."""
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_gpu_enable_triton_gemm=false"
    environ = os.environ | import_path(tree) | {"XLA_FLAGS": flags}
    command = [sys.executable, __file__, "--worker"]
    command += ["--model", args.model, "--batch", str(args.batch)]
    done = subprocess.run(command, env=environ, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def rows_of(counts: dict[str, dict[str, dict[str, int]]]) -> list[dict]:
    """Makes a row for each kind of operation, with GB by pass and tree."""
    rows = []
    for kind in (*KINDS, "all outside the scan", SCAN):
        row = {"operations": kind}
        for name in next(iter(counts.values())):
            for tree, passes in counts.items():
                moved = passes[name]
                outside = sum(moved.values()) - moved.get(SCAN, 0)
                total = outside if kind.startswith("all") else moved.get(kind, 0)
                row[f"{name}, {tree}"] = f"{total / 1e9:.3f}"
        rows.append(row)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("commit", nargs="?", help="to compare with")
    parser.add_argument("--model", default="B")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        compiled = programs(args.model, args.batch)
        print(json.dumps({name: bytes_moved(text) for name, text in compiled.items()}))
        return
    counts = {}
    if args.commit:
        with checked_out(args.commit) as before:
            counts["before"] = count(before, args)
    counts["now"] = count(ROOT, args)
    about = environment("jax", "jaxlib", "jax-triton", "triton") | {"before": args.commit}
    rows = rows_of(counts)
    text = (
        f"One block of {args.model}, batch {args.batch}, float32: GB read and written by the "
        "operations of the program compiled for an H100, "
        f"`python benchmarks/block_bytes.py{f' {args.commit}' if args.commit else ''}`. Compiled, "
        f"not run.\n\n{table(rows, {key: key for key in rows[0]})}\n\n```\n{about}\n```"
    )
    print(text)
    write_results("block_bytes", {"environment": about, "bytes": counts}, text)


if __name__ == "__main__":
    main()
