"""The model against the authors' numbers on each scan kernel, in interpreters where need be."""

import contextlib
import dataclasses

import jax
import numpy as np
import pytest
from selective_scan_jax import implementations, interpreted

from posemamba_jax import losses
from posemamba_jax.convert import to_torch
from posemamba_jax.model import PoseMamba
from posemamba_jax.model.block import Block

KERNELS = ("mosaic_tpu", "mosaic_gpu", "triton")


def error_ratio(value, reference):
    return np.max(np.abs(np.asarray(value, np.float64) - reference)) / np.max(np.abs(reference))


@pytest.fixture(params=KERNELS)
def kernel(request):
    """An implementation's name, inside its interpreter where this machine has not its hardware."""
    runs_here = implementations()[request.param] is None
    with contextlib.nullcontext() if runs_here else interpreted():
        if (reason := implementations()[request.param]) is not None:
            pytest.skip(reason)
        yield request.param


def with_depths(config, kernel):
    """Makes the model on a kernel; skips where that kernel's interpreter cannot be in a loop."""
    if kernel == "mosaic_gpu" and jax.default_backend() != "gpu":
        pytest.skip("the Mosaic GPU interpreter's callbacks are refused by the loop over depths")
    return PoseMamba(dataclasses.replace(config, implementation=kernel))


@pytest.mark.slow
def test_first_block(kernel, goldens, config, variables):
    params = variables["params"]
    h = goldens["input"] @ params["embed"]["kernel"] + params["embed"]["bias"]
    h = h + params["spatial_pos"][:, None]
    weight = np.random.default_rng(0).normal(size=h.shape)

    def run(implementation):
        block = Block(dataclasses.replace(config, implementation=implementation), True)

        @jax.jit
        def outputs_and_gradients(params, h):
            y, pull_back = jax.vjp(lambda p, h: block.apply({"params": p}, h, 0.0), params, h)
            return y, pull_back(weight.astype(np.float32))

        return outputs_and_gradients(jax.tree.map(lambda x: x[0], params["blocks"]["spatial"]), h)

    (output, gradients), (_, expected) = run(kernel), run("xla")
    assert error_ratio(output, goldens["block/STEblocks.0"]) < 2e-5
    errors = jax.tree.map(error_ratio, gradients, expected)
    assert max(jax.tree.leaves(errors)) < 1e-5, errors


def test_output(kernel, goldens, config, variables):
    output = jax.jit(with_depths(config, kernel).apply)(variables, goldens["input"])
    assert error_ratio(output, goldens["output"]) < 2e-5


@pytest.mark.slow
def test_gradients(kernel, goldens, config, variables):
    model = with_depths(config, kernel)

    @jax.jit
    @jax.grad
    def gradient(params):
        output = model.apply({"params": params}, goldens["input"])
        return losses.total(output, goldens["target"])[0]

    found = to_torch({"params": gradient(variables["params"])})
    errors = {key: error_ratio(g, goldens[f"grad_exact/{key}"]) for key, g in found.items()}
    assert {key: e for key, e in errors.items() if not e < 2e-4} == {}
