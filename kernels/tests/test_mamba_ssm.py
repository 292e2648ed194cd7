"""Parity with mamba-ssm's own reference, `selective_scan_ref`, in PyTorch on a CPU.

The package is imported without its compiled part: an empty module stands in for its CUDA extension,
and a bare package for its __init__, which would import Triton kernels.
"""

import importlib
import importlib.util
import os
import sys
import types

import jax
import numpy as np
import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from selective_scan_jax import available, selective_scan
from selective_scan_jax.testing import Shape, random_operands, relative_error

FORWARD, GRADIENT = 1e-5, 1e-4
# The associative scan is left to the comparison with float64: each shape takes long to compile.
IMPLEMENTATIONS = [name for name in available() if name != "associative"]


def import_reference():
    spec = importlib.util.find_spec("mamba_ssm")
    if spec is None:
        raise ImportError("mamba-ssm is not installed")
    bare = types.ModuleType("mamba_ssm")
    bare.__path__ = list(spec.submodule_search_locations)
    stand_ins = {"mamba_ssm": bare, "selective_scan_cuda": types.ModuleType("selective_scan_cuda")}
    before = {name: sys.modules.get(name) for name in stand_ins}
    sys.modules.update(stand_ins)
    try:
        module = importlib.import_module("mamba_ssm.ops.selective_scan_interface")
    finally:
        for name, old in before.items():
            sys.modules.pop(name) if old is None else sys.modules.update({name: old})
    return module.selective_scan_ref


@pytest.fixture(scope="module")
def torch_scan():
    """f(operands, grad_y, grad_last_state) -> y, last_state, gradients; channels last."""
    try:
        import torch

        reference = import_reference()
    except ImportError as error:
        if os.environ.get("POSEMAMBA_REQUIRE_PARITY") == "1":
            pytest.fail(f"POSEMAMBA_REQUIRE_PARITY=1, but: {error}")
        pytest.skip(f"needs PyTorch and mamba-ssm (the parity extra): {error}")

    # Small tensors: threads would only wait for each other.
    torch.set_num_threads(1)

    def run(operands, grad_y, grad_last_state, delta_softplus):
        x = {k: torch.tensor(v, requires_grad=True) for k, v in operands.items()}
        last = {k: x[k].movedim(1, -1) for k in ("u", "delta", "B", "C", "z") if k in x}
        y, state = reference(
            last["u"], last["delta"], x["A"], last["B"], last["C"], x.get("D"), last.get("z"),
            x.get("delta_bias"), delta_softplus, return_last_state=True,
        )  # fmt: skip
        y = y.movedim(-1, 1)
        loss = (y * torch.tensor(grad_y)).sum() + (state * torch.tensor(grad_last_state)).sum()
        loss.backward()
        return y.detach().numpy(), state.detach().numpy(), {k: v.grad.numpy() for k, v in x.items()}

    return run


@st.composite
def shapes(draw):
    groups = draw(st.sampled_from([1, 2, 4]))
    absent = [n for n in ("D", "delta_bias", "z") if draw(st.booleans())]
    return Shape(
        batch=draw(st.integers(1, 3)),
        length=draw(st.integers(0, 25)) * 2 + 1,
        channels=groups * draw(st.integers(1, 3)),
        groups=groups,
        state=draw(st.sampled_from([1, 2, 8, 16])),
        delta_softplus=draw(st.booleans()),
        absent=("initial_state", *absent),
    )


def assert_parity(torch_scan, shape, names, seed):
    operands = random_operands(shape, seed)
    rng = np.random.default_rng(seed + 1)
    grad_y = rng.normal(size=operands["u"].shape).astype(np.float32)
    grad_state = rng.normal(size=(shape.batch, shape.channels, shape.state)).astype(np.float32)
    expected = torch_scan(operands, grad_y, grad_state, shape.delta_softplus)

    def run(operands, cotangents, name):
        outputs, pull_back = jax.vjp(
            lambda x: selective_scan(
                **x,
                delta_softplus=shape.delta_softplus,
                return_last_state=True,
                implementation=name,
            ),
            operands,
        )
        return *outputs, pull_back(cotangents)[0]

    for name in names:
        y, state, grads = jax.jit(run, static_argnums=2)(operands, (grad_y, grad_state), name)
        assert relative_error(y, expected[0]) < FORWARD, name
        assert relative_error(state, expected[1]) < FORWARD, name
        errors = {k: relative_error(grads[k], expected[2][k]) for k in operands}
        assert max(errors.values()) < GRADIENT, (name, errors)


# XLA takes seconds to compile each shape; the native kernel is there already.
@pytest.mark.parametrize(
    ("name", "count"),
    [
        pytest.param(name, count, marks=[pytest.mark.slow] if count == 10 else [])
        for name in IMPLEMENTATIONS
        for count in ([25] if name == "cpu" else [4, 10])
    ],
)
def test_drawn_shapes(torch_scan, name, count):
    # No shrinking: every further shape is compiled anew.
    phases = [Phase.explicit, Phase.generate]

    @settings(max_examples=count, derandomize=True, deadline=None, phases=phases)
    @given(shape=shapes(), seed=st.integers(0, 2**16))
    def check(shape, seed):
        assert_parity(torch_scan, shape, [name], seed)

    check()


def test_reference_length(torch_scan):
    # Few channels: PyTorch's gradient of a slice is as large as what it was cut from, 4131 times.
    shape = Shape(1, 4131, 4, 2, 4, absent=("z", "initial_state"))
    assert_parity(torch_scan, shape, IMPLEMENTATIONS, seed=3)
