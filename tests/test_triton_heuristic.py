"""The Triton kernels' heuristic against the latency model's figures in benchmarks/results."""

import dataclasses
import json

import pytest
from benchmark_modules import BENCHMARKS, load_benchmark

pytest.importorskip("triton", reason="the Triton kernels' configuration needs Triton")

from selective_scan_jax.triton import static
from selective_scan_jax.triton.heuristic import heuristic

gpu_static = load_benchmark("gpu_static")
ROWS = json.loads((BENCHMARKS / "results" / "gpu_static.json").read_text())["kernels"]


@pytest.mark.parametrize("backward", [False, True])
@pytest.mark.parametrize("family", gpu_static.FAMILIES)
def test_the_heuristic_chooses_what_models_fast(family, backward):
    """Nothing among the kernels of the committed table models more than 10 % faster."""
    kernels = gpu_static.family_figures(ROWS, family)
    prefix, name = ("backward_", "scan_backward") if backward else ("", "scan_forward")
    assert gpu_static.BATCHES == (1, 4, 16, 64, 256)
    for batch in gpu_static.BATCHES:
        shape = gpu_static.shape_of(family, batch)
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
