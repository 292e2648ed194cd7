"""Measures block sizes on the current device and writes the table that `tuning.choose` reads.

usage: python -m selective_scan_jax.tune [--batch 1,4,16] [--implementations triton]
                                          [--directions frames,joints] [--output FILE]

For every implementation that can run here and asks for block sizes, and for both operators: starts
from what would be used now, tries its `candidates` one after the other on forward and backward pass
together, goes on from the best, and stops when none is better. Sizes that do not compile or do not
fit are passed over.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import pathlib
import statistics
import sys
import time
from collections.abc import Callable

import jax
import jax.numpy as jnp

from selective_scan_jax import backends, cross_scan, selective_scan, tuning
from selective_scan_jax.order import H36M_LIMB_WALK, ScanOrder, direction_named
from selective_scan_jax.target import current_target
from selective_scan_jax.testing import (
    REFERENCE_BLOCK,
    BlockShape,
    random_cross_operands,
    random_operands,
    with_gradients,
)


def _block(options, batch: int) -> BlockShape:
    """Describes the sizes to tune for; the number of directions is the order's."""
    sizes = (options.frames, options.joints, options.channels)
    return BlockShape(batch, *sizes, len(_order(options).directions), options.state, options.rank)


def cross_case(options, batch: int, implementation: str) -> tuple[Callable, tuple]:
    """Makes a block's cross scan with all gradients, and its operands."""
    scan = functools.partial(cross_scan, order=_order(options), implementation=implementation)
    operands = random_cross_operands(*dataclasses.astuple(_block(options, batch)))
    return scan, tuple(map(jnp.asarray, operands))


def selective_case(options, batch: int, implementation: str) -> tuple[Callable, tuple]:
    """Makes the same scan as one selective scan, a group for each direction."""
    operands = random_operands(_block(options, batch).selective)

    def scan(*arrays):
        named = dict(zip(operands, arrays, strict=True))
        return selective_scan(**named, delta_softplus=True, implementation=implementation)

    return scan, tuple(map(jnp.asarray, operands.values()))


def seconds(function: Callable, operands: tuple, configs: dict, repeats: int) -> float:
    """Measures the median time of a call with these block sizes, compiled anew."""
    with tuning.trying(configs):
        compiled = jax.jit(lambda *a: function(*a)).lower(*operands).compile()
    jax.block_until_ready(compiled(*operands))
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        jax.block_until_ready(compiled(*operands))
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def tune(function: Callable, operands: tuple, repeats: int, say: Callable = print) -> dict:
    """Finds for each kernel that a function calls its shape, the best config and the seconds."""
    with tuning.recording() as requests:
        jax.eval_shape(lambda *a: function(*a), *operands)
    best = {name: request.default for name, request in requests.items()}
    if not best:
        return {}
    fastest = seconds(function, operands, best, repeats)
    say(f"  {fastest * 1e3:9.3f} ms  {best}")
    for name, request in requests.items():
        tried, improved = {best[name]}, True
        while improved:
            improved = False
            for candidate in best[name].candidates(request.shape):
                if candidate in tried:
                    continue
                tried.add(candidate)
                try:
                    took = seconds(function, operands, best | {name: candidate}, repeats)
                except Exception as error:  # the compiler's and the device's own kinds
                    say(f"    passed over  {candidate}: {str(error).splitlines()[0][:80]}")
                    continue
                say(f"  {took * 1e3:9.3f} ms  {candidate}")
                if took < 0.98 * fastest:
                    fastest, best[name], improved = took, candidate, True
                    break
    return {name: (requests[name].shape, config, fastest) for name, config in best.items()}


def _order(options) -> ScanOrder:
    """Returns the order to scan in, with the limb term where the grid has Human3.6M's joints."""
    named = ScanOrder.named("limbs" if options.joints == len(H36M_LIMB_WALK) else "global")
    if not getattr(options, "directions", None):
        return named
    directions = tuple(direction_named(name) for name in options.directions.split(","))
    return dataclasses.replace(named, directions=directions)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m selective_scan_jax.tune")
    parser.add_argument("--batch", default="1,4,16,64", help="batch sizes, comma-separated")
    parser.add_argument("--implementations", help="names, comma-separated; all that can run")
    parser.add_argument("--operators", default="cross_scan,selective_scan")
    for name in ("frames", "joints", "channels", "state", "rank"):
        parser.add_argument(f"--{name}", type=int, default=getattr(REFERENCE_BLOCK, name))
    parser.add_argument("--repeats", type=int, default=10)
    parser.add_argument(
        "--directions", help="names of directions, comma-separated; those of the order limbs"
    )
    parser.add_argument("--output", type=pathlib.Path, default=tuning.user_table())
    options = parser.parse_args(arguments)
    if options.output is None:
        sys.exit("error: --output is missing: no home folder is known, to keep the table in")
    cases = {"cross_scan": cross_case, "selective_scan": selective_case}
    device = current_target().device_kind
    names = options.implementations.split(",") if options.implementations else backends.available()
    try:
        _order(options)
        names = [backends.resolve(name) for name in names]
        batches = [int(batch) for batch in options.batch.split(",")]
        makers = {name: cases[name] for name in options.operators.split(",")}
    except KeyError as error:
        sys.exit(f"error: --operators: expected some of {', '.join(cases)}, got {error}")
    except (RuntimeError, ValueError) as error:
        sys.exit(f"error: {error}")
    written = 0
    for name in names:
        for operator, make in makers.items():
            for batch in batches:
                print(f"{name} {operator} batch {batch} on {device}", flush=True)
                scan, operands = make(options, batch, name)
                # The gradient by y may be anything of its shape, the first operand's.
                function, operands = with_gradients(scan), (operands[0], *operands)
                say = functools.partial(print, flush=True)
                for kernel, (shape, config, _) in tune(
                    function, operands, options.repeats, say
                ).items():
                    tuning.record(options.output, device, kernel, shape, config)
                    written += 1
    print(f"wrote {written} entries to {options.output}" if written else "nothing to tune here")


if __name__ == "__main__":
    main()
