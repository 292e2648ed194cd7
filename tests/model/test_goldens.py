"""The model, its losses, gradients and first training steps against the authors' implementation."""

import dataclasses

import jax
import numpy as np
import optax
import pytest

from posemamba_jax import losses
from posemamba_jax.convert import to_torch
from posemamba_jax.model import PoseMamba

ORDERS = {
    "output": "limbs",
    "output/v2": "global",
    "output/v2_fs_ft": "fs_ft",
    "output/v2_fs_bt": "fs_bt",
    "output/v2_bs_ft": "bs_ft",
    "output/v2_bs_bt": "bs_bt",
}


def error_ratio(value, reference):
    """Returns the largest deviation relative to the largest magnitude of the reference."""
    assert np.shape(value) == np.shape(reference)
    return np.max(np.abs(np.asarray(value, np.float64) - reference)) / np.max(np.abs(reference))


@pytest.mark.parametrize("name", ORDERS)
def test_output(name, goldens, config, variables):
    model = PoseMamba(dataclasses.replace(config, scan=ORDERS[name]))
    output = jax.jit(model.apply)(variables, goldens["input"])
    assert error_ratio(output, goldens[name]) < 2e-5


def test_scan_orders_differ(goldens):
    """Otherwise the test above would not tell them apart."""
    for name in ORDERS:
        for other in ORDERS:
            if other != name:
                assert error_ratio(goldens[name], goldens[other]) > 1e-3


def test_outputs_of_first_blocks(goldens, config, variables):
    @jax.jit
    def run(variables, poses_2d):
        return PoseMamba(config).apply(
            variables, poses_2d, capture_intermediates=True, mutable=["intermediates"]
        )

    _, state = run(variables, goldens["input"])
    blocks = state["intermediates"]["blocks"]
    for ours, theirs in (("spatial", "STEblocks"), ("temporal", "TTEblocks")):
        (stacked,) = blocks[ours]["__call__"]
        assert stacked.shape[0] == config.depth
        assert error_ratio(stacked[0], goldens[f"block/{theirs}.0"]) < 2e-5


@pytest.mark.parametrize("term", losses.TERMS)
def test_loss_term(term, goldens):
    value = losses.TERMS[term](goldens["output"], goldens["target"])
    assert error_ratio(value, goldens[f"loss/{term}"]) < 1e-5


def test_total_loss(goldens):
    loss, terms = losses.total(goldens["output"], goldens["target"])
    assert error_ratio(loss, goldens["loss/total"]) < 1e-5
    assert set(terms) == {"pos", "scale", "velocity", "diff"}


@pytest.mark.parametrize(("mode", "remat"), [("exact", "none"), ("released", "block")])
def test_gradients_and_training(mode, remat, goldens, config, variables):
    """Gradients at the start, then ten AdamW steps of the recipe on the one batch.

    Recomputation changes no value, so it runs in one of the two cases.
    """
    model = PoseMamba(dataclasses.replace(config, limb_gradient=mode, remat=remat))
    optimiser = optax.adamw(2e-4, weight_decay=0.01)

    @jax.jit
    def step(params, state, poses_2d):
        def loss_of(params, poses_2d):
            output = model.apply({"params": params}, poses_2d)
            return losses.total(output, goldens["target"])[0], output

        (loss, output), gradients = jax.value_and_grad(loss_of, (0, 1), has_aux=True)(
            params, poses_2d
        )
        updates, state = optimiser.update(gradients[0], state, params)
        return optax.apply_updates(params, updates), state, loss, output, gradients

    params, state, train_losses = variables["params"], optimiser.init(variables["params"]), []
    for i in range(10):
        params, state, loss, _, (gradient, input_gradient) = step(params, state, goldens["input"])
        train_losses.append(float(loss))
        if i == 0:
            errors = {
                key: error_ratio(value, goldens[f"grad_{mode}/{key}"])
                for key, value in (
                    *to_torch({"params": gradient}).items(),
                    ("input", input_gradient),
                )
            }
            assert len(errors) == sum(key.startswith(f"grad_{mode}/") for key in goldens)
            assert {key: e for key, e in errors.items() if not e < 2e-4} == {}
    np.testing.assert_allclose(train_losses, goldens[f"train_{mode}/loss"], rtol=1e-4)
    _, _, _, output, _ = step(params, state, goldens["input"])
    assert error_ratio(output, goldens[f"train_{mode}/output"]) < 1e-4


def test_gradient_modes_differ(goldens):
    assert error_ratio(goldens["grad_released/input"], goldens["grad_exact/input"]) > 1e-2
