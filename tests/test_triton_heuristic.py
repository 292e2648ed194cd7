"""The Triton kernels' heuristic against the latency model's figures in benchmarks/results."""

import dataclasses
import json
import pathlib

import pytest

pytest.importorskip("triton", reason="the Triton kernels' configuration needs Triton")

from selective_scan_jax.triton import static
from selective_scan_jax.triton.heuristic import heuristic

TABLE = pathlib.Path(__file__).parents[1] / "benchmarks" / "results" / "gpu_static.json"
FAMILIES = {"cross-256": (256, 8), "cross-128": (128, 4), "selective-256": (256, 0)}


@pytest.mark.parametrize("backward", [False, True])
@pytest.mark.parametrize("family", FAMILIES)
def test_the_heuristic_chooses_what_models_fast(family, backward):
    """Nothing among the kernels of the committed table models more than 10 % faster."""
    rows = [row for row in json.loads(TABLE.read_text())["kernels"] if row["family"] == family]
    kernels = {
        (row["kernel"], row["states"]): static.Figures(
            row["group"], row["registers"], row["spilled"], tuple(row["cycles"])
        )
        for row in rows
    }
    channels, rank = FAMILIES[family]
    shape = {"length": 4131, "channels": channels, "directions": 4, "state": 16, "rank": rank}
    prefix, name = ("backward_", "scan_backward") if backward else ("", "scan_forward")
    for batch in (1, 4, 16, 64, 256):
        shape["batch"] = batch
        chosen = heuristic(shape)
        times = {
            (states, segments): static.modelled_ms(
                kernels,
                shape,
                dataclasses.replace(
                    chosen, **{f"{prefix}states": states, f"{prefix}segments": segments}
                ),
                backward,
            )
            for kernel, states in kernels
            if kernel == name
            for segments in (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48)
        }
        time = static.modelled_ms(kernels, shape, chosen, backward)
        assert time <= 1.1 * min(times.values()), (batch, chosen, min(times, key=times.get))
        states = getattr(chosen, f"{prefix}states")
        assert getattr(chosen, f"{prefix}group") == kernels[name, states].group
