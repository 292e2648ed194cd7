"""What scans hold in memory, from the programs' structure and the compiler's analysis."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.extend import core
from selective_scan_jax import ScanOrder, available, composed, cross_scan, selective_scan
from selective_scan_jax.cpu import call as cpu_scan
from selective_scan_jax.operands import CrossScanOperands
from selective_scan_jax.testing import Shape, random_cross_operands, random_operands
from selective_scan_jax.xla import selective as xla_scan

SHAPE = Shape(2, 1021, 32, 2, 16)
GRID = (2, 61, 17, 8, 4, 16, 2)


def loss_of_selective_scan(operands):
    y, state = selective_scan(
        **operands, delta_softplus=True, return_last_state=True, implementation="xla"
    )
    return jnp.sum(y**2) + jnp.sum(state**2)


def loss_of_cross_scan(arrays):
    return jnp.sum(cross_scan(*arrays, order="limbs", implementation="xla") ** 2)


CASES = [
    (loss_of_selective_scan, random_operands(SHAPE), 2 * 1021 * 32 * 16),
    (loss_of_cross_scan, random_cross_operands(*GRID), 2 * 61 * 17 * 4 * 8 * 16),
]


def arrays_in(jaxpr):
    """Lists the sizes of all values in a jaxpr, inner ones included."""
    for equation in jaxpr.eqns:
        yield from (v.aval.size for v in equation.outvars)
        for inner in core.jaxprs_in_params(equation.params):
            yield from arrays_in(inner)


# At most this share of what the unfused scan of the same implementation takes, with gradients. The
# figures for a model's shape are in benchmarks/results/scan_memory.md.
SHARES = {"xla": (xla_scan, 0.5), "cpu": (cpu_scan, 0.1)}


@pytest.mark.slow
@pytest.mark.parametrize("name", SHARES)
def test_fused_takes_a_fraction_of_the_unfused_memory(name):
    if name not in available():
        pytest.skip(f"{name} cannot run here")
    module, share = SHARES[name]
    order = ScanOrder.named("limbs")
    arrays = random_cross_operands(4, 27, 17, 64, 4, 8, 2)

    def fused(*arrays):
        return cross_scan(*arrays, order=order, implementation=name)

    def unfused(*arrays):
        return composed.cross_scan(module.selective_scan, CrossScanOperands(*arrays), order=order)

    def temporaries(scan):
        def run(grad_y, *arrays):
            y, pull_back = jax.vjp(scan, *arrays)
            return y, pull_back(grad_y)

        compiled = jax.jit(run).lower(arrays[0], *arrays).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    ratio = temporaries(fused) / temporaries(unfused)
    assert ratio < share, ratio


@pytest.mark.parametrize(("loss", "operands", "forbidden"), CASES, ids=["selective", "cross"])
def test_no_array_of_all_states(loss, operands, forbidden):
    gradient = jax.value_and_grad(loss)
    sizes = list(arrays_in(jax.make_jaxpr(gradient)(operands).jaxpr))
    assert len(sizes) > 100  # the loops were looked into
    inputs = max(a.size for a in jax.tree.leaves(operands))
    assert max(sizes) <= max(forbidden // 8, inputs)

    used = jax.jit(gradient).lower(operands).compile().memory_analysis().temp_size_in_bytes
    assert used < 4 * forbidden


@pytest.mark.parametrize(("loss", "operands", "_"), CASES, ids=["selective", "cross"])
def test_residuals_are_inputs_and_boundary_states(loss, operands, _):
    _, pull_back = jax.eval_shape(lambda x: jax.vjp(loss, x), operands)
    kept = sum(a.size for a in jax.tree.leaves(pull_back))
    inputs = sum(np.size(a) for a in jax.tree.leaves(operands))
    assert kept < 3 * inputs
