"""Bytes that a block moves outside of its scan, by the compiler's program; needs no GPU.

usage: python benchmarks/block_bytes.py [--model B] [--batch 16]

Compiles one block for the CPU with the native scan, forward and with gradients, and adds up
operands and outputs of every operation of the compiled program but the scan's: what the fused
operations read and write. A GPU's compiler fuses somewhat differently; this counts what there is to
be moved around the scan, and shows what a change to the block does.

Writes benchmarks/results/block_bytes.{json,md}.
"""

from __future__ import annotations

import argparse
import collections
import re

import jax
import jax.numpy as jnp
import numpy as np
from common import environment, table, write_results

from posemamba_jax.model import PoseMambaConfig
from posemamba_jax.model.block import Block

FRAMES, JOINTS = 243, 17
SIZES = {"f32": 4, "s32": 4, "u32": 4, "bf16": 2, "pred": 1, "u8": 1}
# Operations that move nothing.
FREE = {"parameter", "tuple", "get-tuple-element", "bitcast", "constant"}
INSTRUCTION = re.compile(r"\s+(?:ROOT )?%?([\w.\-]+) = (\(.*?\)|\S+) ([\w\-]+)\((.*?)\)(, |$)")


def size_of(shape: str) -> int:
    """Bytes of an array or a tuple of arrays, as a program's text has its shape."""
    arrays = re.findall(r"(\w+)\[([\d,]*)\]", shape)
    return sum(
        int(np.prod([int(n) for n in dims.split(",") if n])) * SIZES.get(kind, 4)
        for kind, dims in arrays
    )


def bytes_moved(program: str) -> collections.Counter:
    """Bytes read and written by the operations of a program's main computation, by kind."""
    sizes, moved = {}, collections.Counter()
    for line in program[program.index("ENTRY") :].splitlines():
        if (found := INSTRUCTION.match(line)) is None:
            continue
        name, shape, operation, operands = found.groups()[:4]
        sizes[name] = size_of(shape)
        if operation not in FREE:
            kind = "scan" if "selective_scan_cpu" in line else operation
            read = (sizes.get(operand, 0) for operand in re.findall(r"%([\w.\-]+)", operands))
            moved[kind] += sizes[name] + sum(read)
    return moved


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--model", default="B")
    parser.add_argument("--batch", type=int, default=16)
    options = parser.parse_args()
    jax.config.update("jax_platforms", "cpu")
    config = PoseMambaConfig.preset(options.model, implementation="cpu")
    block = Block(config, True)
    h = jax.ShapeDtypeStruct((options.batch, FRAMES, JOINTS, config.dim), jnp.float32)
    params = jax.eval_shape(lambda h: block.init(jax.random.key(0), h, 0.0), h)

    def forward(params, h):
        return block.apply(params, h, 0.0)

    def both(params, h):
        y, pull_back = jax.vjp(forward, params, h)
        return y, pull_back(y)

    rows = []
    for name, function in (("forward", forward), ("forward and backward", both)):
        moved = bytes_moved(jax.jit(function).lower(params, h).compile().as_text())
        outside = sum(moved.values()) - moved["scan"]
        row = {"pass": name, "outside the scan, GB": round(outside / 1e9, 3)}
        rows.append(row | {"the scan's operands, GB": round(moved["scan"] / 1e9, 3)})
    about = environment("jax", "jaxlib")
    text = (
        f"One block of {options.model}, batch {options.batch}, float32: bytes read and written by "
        "the operations of the program compiled for a CPU, `python benchmarks/block_bytes.py`.\n\n"
        f"{table(rows, {key: key for key in rows[0]})}\n\n```\n{about}\n```"
    )
    print(text)
    write_results("block_bytes", {"environment": about, "rows": rows}, text)


if __name__ == "__main__":
    main()
