"""What must hold of the Triton kernels beyond what every implementation is tested for.

None of it needs a GPU: the kernels run in two interpreters, are compiled for three generations of
GPUs, and whole programs are lowered for one. kernels/tests/test_gpu_device.py runs them on a GPU.
"""

import dataclasses
import functools
import importlib.util
import os
import re
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from selective_scan_jax import (
    Direction,
    ScanOrder,
    Target,
    available,
    cross_scan,
    interpreted,
    lowering_for,
    selective_scan,
    tuning,
)
from selective_scan_jax import gpu_latency as latency
from selective_scan_jax.backends import unavailable_reason
from selective_scan_jax.order import SCAN_ORDERS
from selective_scan_jax.testing import (
    Shape,
    cross_scan_float64,
    random_cross_operands,
    random_operands,
    relative_error,
    selective_scan_float64,
)
from selective_scan_jax.triton import installation, static
from selective_scan_jax.triton.heuristic import Config

needs_triton = pytest.mark.skipif(
    importlib.util.find_spec("triton") is None, reason="needs triton: pip install triton"
)
needs_jax_triton = pytest.mark.skipif(
    importlib.util.find_spec("jax_triton") is None,
    reason="needs jax-triton: pip install jax-triton",
)
pytestmark = needs_triton

HOPPER = Target("gpu", "NVIDIA H100 80GB HBM3", 90)


def assert_close(actual, expected, tolerance=1e-5):
    errors = jax.tree.map(relative_error, actual, expected)
    assert max(jax.tree.leaves(errors)) < tolerance, errors


def run_selective_scan(shape: Shape, config=None):
    """Checks a scan and its gradients in the interpreter against float64."""
    operands, rng = random_operands(shape), np.random.default_rng(1)
    grads = (
        rng.normal(size=(shape.batch, shape.length, shape.channels)).astype(np.float32),
        rng.normal(size=(shape.batch, shape.channels, shape.state)).astype(np.float32),
    )
    options = {"delta_softplus": shape.delta_softplus, "reverse": shape.reverse}
    scan = functools.partial(
        selective_scan, return_last_state=True, implementation="triton", **options
    )
    with interpreted(), tuning.trying({"triton_scan": config} if config else {}):
        outputs, pull_back = jax.vjp(lambda x: scan(**x), operands)
        by_operands = pull_back(grads)[0]
    *expected, expected_grads = selective_scan_float64(operands, *grads, **options)
    assert_close((outputs, by_operands), (tuple(expected), expected_grads))


def run_cross_scan(order: ScanOrder, sizes, config=None):
    arrays = random_cross_operands(*sizes)
    grad = np.random.default_rng(1).normal(size=arrays[0].shape).astype(np.float32)
    scan = functools.partial(cross_scan, order=order, implementation="triton")
    with interpreted(), tuning.trying({"triton_scan": config} if config else {}):
        y, pull_back = jax.vjp(scan, *arrays)
        by_arrays = pull_back(grad)
    expected, expected_grads = cross_scan_float64(arrays, grad, order)
    assert_close((y, list(by_arrays)), (expected, expected_grads))


# numbers


CONFIGS = {
    "several chunks, not full": {"chunk": 4, "group": 2},
    "a step at a time": {"chunk": 1, "group": 1, "backward_group": 1},
    "groups beyond the end": {"group": 5, "backward_group": 4},
    "states in parts": {"states": 2, "backward_states": 1},
    "two channels a thread": {"channels": 2, "backward_channels": 2},
    "the length in segments": {
        "chunk": 2, "group": 1, "segments": 3, "backward_segments": 3, "backward_states": 2,
    },
}  # fmt: skip


@pytest.mark.parametrize("order", ["limbs", pytest.param("bs_bt", marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", CONFIGS)
def test_every_way_to_cut_a_cross_scan(name, order):
    order = ScanOrder.named(order, limb_walk=(0, 0, 1))
    run_cross_scan(order, (2, 4, 3, 5, 4, 4, 3), Config(**CONFIGS[name]))


@pytest.mark.parametrize("name", CONFIGS)
def test_every_way_to_cut_a_selective_scan(name):
    run_selective_scan(Shape(1, 9, 6, 2, 4, reverse=True), Config(**CONFIGS[name]))


def test_several_blocks_of_channels(monkeypatch):
    from selective_scan_jax.triton import scan as triton_scan

    monkeypatch.setattr(triton_scan._Scan, "lanes", lambda *_: 4)
    run_cross_scan(ScanOrder.named("limbs", limb_walk=(1, 0)), (1, 3, 2, 11, 4, 2, 2))
    run_selective_scan(Shape(1, 6, 11, 1, 3))


@pytest.mark.parametrize("shape", [
    Shape(1, 3, 3, 3, 3), Shape(1, 5, 4, 1, 6), Shape(1, 4, 2, 1, 17), Shape(1, 3, 2, 2, 24),
], ids=str)  # fmt: skip
def test_numbers_of_states_that_are_no_powers_of_two(shape):
    run_selective_scan(shape)


@pytest.mark.slow
@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("inner_reversed", [False, True])
@pytest.mark.parametrize("frame_by_frame", [False, True])
@pytest.mark.parametrize("gradient", ["exact", "released"])
def test_every_direction(frame_by_frame, inner_reversed, reverse, gradient):
    order = ScanOrder(
        (Direction(frame_by_frame, inner_reversed, reverse), Direction(True)), (2, 0, 1), gradient
    )
    run_cross_scan(order, (2, 4, 3, 3, 2, 2, 1))


@pytest.mark.slow
@pytest.mark.parametrize("case", ["selective", *SCAN_ORDERS])
def test_triton_interpreter(case, monkeypatch):
    """Triton's own interpreter, which runs one program after the other."""
    from selective_scan_jax.triton import call as triton_call

    pytest.importorskip("torch", reason="Triton's interpreter needs torch: pip install torch")
    monkeypatch.setattr(triton_call, "INTERPRETER", "triton")
    if case == "selective":
        run_selective_scan(Shape(1, 5, 4, 2, 2, reverse=True))
    else:
        run_cross_scan(ScanOrder.named(case, limb_walk=(0, 0)), (1, 2, 2, 3, 4, 2, 2))


@pytest.mark.parametrize("name", ["triton", "emulation"])
def test_bfloat16_in_both_interpreters(name, monkeypatch):
    from selective_scan_jax.triton import call as triton_call

    if name == "triton":
        pytest.importorskip("torch", reason="Triton's interpreter needs torch: pip install torch")
    monkeypatch.setattr(triton_call, "INTERPRETER", name)
    low = {
        k: jnp.asarray(v, jnp.bfloat16) for k, v in random_operands(Shape(1, 3, 2, 1, 2)).items()
    }
    with interpreted():
        y, state = selective_scan(
            **low, delta_softplus=True, return_last_state=True, implementation="triton"
        )
    exact = {k: np.asarray(v, np.float32) for k, v in low.items()}
    expected, expected_state, _ = selective_scan_float64(
        exact, np.zeros(y.shape), np.zeros(state.shape), delta_softplus=True, reverse=False
    )
    assert y.dtype == jnp.bfloat16
    assert_close(state, expected_state, 1e-6)
    assert_close(y.astype(jnp.float32), expected, 2**-8)


def test_emulation_refuses_accesses_outside_of_an_array_and_races():
    from selective_scan_jax.triton import emulation

    def run(array, lanes, stride, mask=None):
        tl = emulation.Language(np.arange(2))
        pointer = emulation.Pointer("x", array, 0) + tl.program_id(0) * lanes
        tl.store(pointer + tl.arange(0, lanes)[:,] * stride, tl.arange(0, lanes), mask)

    run(np.zeros(8), 4, 1)
    with pytest.raises(IndexError, match="x: offsets 0 to 7 of 7"):
        run(np.zeros(7), 4, 1)
    with pytest.raises(IndexError, match="x: two programs or threads store to one place"):
        run(np.zeros(16), 4, 2)
    with pytest.raises(TypeError, match="a loop or branch differs between programs"):
        range(emulation.Tensor(np.arange(2)))


# compiled for a GPU


def block(batch=16, frames=243, joints=17, channels=256, state=16, dtype=jnp.float32):
    """Returns the operands of a block's cross scan and of its output's gradient."""
    rank, grid = channels // 32, (batch, frames, joints)
    shapes = [(*grid, channels), (*grid, 4, rank), (*grid, 4, state), (*grid, 4, state)]
    shapes += [(4, channels, rank), (4, channels), (4, channels, state), (4, channels)]
    arrays = [jax.ShapeDtypeStruct(shape, dtype) for shape in shapes]
    return arrays, jax.ShapeDtypeStruct(shapes[0], jnp.float32)


def cross_gradients(arrays, grad):
    scan = functools.partial(cross_scan, implementation="triton")
    return jax.vjp(scan, *arrays)[1](grad)


def selective_gradients_with_states(u, delta, A, B, C, D, initial):
    scan = functools.partial(selective_scan, return_last_state=True, implementation="triton")
    outputs, pull_back = jax.vjp(
        lambda *a: scan(*a[:6], initial_state=a[6]), u, delta, A, B, C, D, initial
    )
    return pull_back(outputs)


def sequences(batch=16, length=4131, channels=1024, groups=4, state=16, dtype=jnp.float32):
    sequence, row = (batch, length, channels), (batch, length, groups, state)
    shapes = [sequence, sequence, (channels, state), row, row, (channels,), (channels,)]
    return [jax.ShapeDtypeStruct(shape, dtype) for shape in shapes]


def assert_no_spills(kernels):
    assert {kernel.launch.kernel for kernel in kernels} == {"scan_forward", "scan_backward"}
    for kernel in kernels:
        assert (kernel.stack, kernel.local) == (0, 0), kernel.launch
        for loop in kernel.loops:
            assert not {"LDL", "STL"} & {instruction.name for instruction in loop}, kernel.launch


@needs_jax_triton
@pytest.mark.parametrize("capability", [80, pytest.param(120, marks=pytest.mark.slow)])
def test_every_kernel_compiles(capability):
    """At a small size, which takes seconds; with the length in segments there are four kernels."""
    config = Config(chunk=1, group=1, backward_group=1, segments=2, backward_segments=2)
    with tuning.trying({"triton_scan": config}):
        arrays = sequences(1, 4, 4, 1, 2)[:6]
        initial = jax.ShapeDtypeStruct((1, 4, 2), jnp.float32)
        launches = static.launches(selective_gradients_with_states, *arrays, initial)
        if capability == 80:
            launches += static.launches(cross_gradients, *block(1, 2, 17, 64, 2, jnp.bfloat16))
    for launch in launches:
        assert static.analyse(launch, capability).registers <= 255
    assert len(launches) == (8 if capability == 80 else 4)


@pytest.mark.long
@pytest.mark.slow
@needs_jax_triton
@pytest.mark.parametrize(
    "capability, shape",
    [(90, {}), (100, {"batch": 1, "dtype": jnp.bfloat16})],
    ids=["sm_90 batch 16", "sm_100 batch 1 bfloat16"],
)
def test_cross_scan_compiles_without_spills(capability, shape):
    launches = static.launches(cross_gradients, *block(**shape), capability=capability)
    scans = [x for x in launches if x.kernel in ("scan_forward", "scan_backward")]
    assert_no_spills([static.analyse(launch, capability) for launch in scans])


# the latency model and what is chosen by it


def listing(*instructions):
    """Returns a loop as the disassembler writes it."""
    lines = [f"        /*{i:04x}*/                   {x} ;" for i, x in enumerate(instructions)]
    return "\n".join([".L_x_0:", *lines, "        /*ff00*/   @P0 BRA `(.L_x_0) ;"])


def modelled(*instructions, warps=1):
    (loop,) = latency.loops(listing(*instructions))
    return latency.cycles(loop, warps)


def test_the_latency_model_waits_for_what_a_gpu_waits_for():
    chain = ["FADD R1, R1, R2"] * 10
    apart = [f"FADD R{i}, R2, R2" for i in range(10, 20)]
    assert modelled(*chain) - modelled(*apart) >= 25
    load, use = "LDG.E R4, desc[UR4][R2.64]", "FADD R5, R4, R4"
    waiting = modelled(load, use)
    assert latency.L2 < waiting < latency.L2 + 20
    # Two loads of a sector wait once.
    again = "LDG.E R6, desc[UR4][R2.64+0x4]", "FADD R7, R6, R6"
    assert modelled(load, use, *again) < waiting + latency.L1 + 20
    # So does a load by a pointer of which the compiler does not know where it leads.
    generic = load.replace("LDG", "LD"), use
    assert modelled(*generic) == waiting
    # A store has no result to wait for, whatever it is called.
    assert modelled(*["STSM.16.M88.4 [R1], R4"] * 3, *chain) < modelled(*chain) + 12
    # Another warp's instructions fill the time of waiting, not that of a busy unit.
    assert modelled(load, use, *apart, warps=2) < 1.2 * modelled(load, use, *apart)
    exponentials = [f"MUFU.EX2 R{i}, R3" for i in range(10, 20)]
    assert modelled(*exponentials) >= 80
    assert modelled(*exponentials, warps=2) == pytest.approx(160, rel=0.1)


# what is installed


def test_an_assembler_older_than_triton_s_is_written_for(monkeypatch, tmp_path):
    for variable in installation._VARIABLES:
        monkeypatch.delenv(variable, raising=False)
    ptxas = tmp_path / "ptxas"
    ptxas.write_text("#!/bin/sh\necho 'Cuda compilation tools, release 11.2, V11.2.1'\n")
    ptxas.chmod(0o755)
    monkeypatch.setattr(installation, "_assemblers", lambda: [ptxas, tmp_path / "none"])
    monkeypatch.setattr(installation, "oldest_assembler", installation.oldest_assembler.__wrapped__)
    installation.write_for_assembler()
    assert [os.environ[variable] for variable in installation._VARIABLES] == [str(ptxas)] * 2
    reason = installation.mismatch(90)
    assert "is of CUDA 11.2 and does not know compute capability 9.0, CUDA 11.8 does" in reason
    assert "pip install" in reason and installation.mismatch(80) is None


@pytest.mark.parametrize(
    "jax_triton, triton, said",
    [
        ("0.4.1", "3.6.0", r"3\.7 or later, this is 3\.6\.0: pip install .triton>=3\.7"),
        ("0.3.1", "3.6.0", None),
        ("0.4.1", "3.9.0", None),
    ],
)  # fmt: skip
def test_versions_that_do_not_work_together_are_named(monkeypatch, jax_triton, triton, said):
    versions = {"jax-triton": jax_triton, "triton": triton}
    monkeypatch.setattr(installation.importlib.metadata, "version", versions.__getitem__)
    monkeypatch.setattr(installation, "oldest_assembler", lambda: None)
    reason = installation.mismatch(90)
    assert reason is None if said is None else re.search(said, reason)


@pytest.mark.slow
@needs_jax_triton
def test_a_program_lowers_for_a_gpu_and_exports():
    """Gradient, vmap and a saved program, with no GPU here."""
    pytest.importorskip("flatbuffers")
    arrays, grad = block(1, 3, 17, 32, 2)

    def per_example(arrays, grad):
        return jax.vmap(cross_gradients, in_axes=((0,) * 8, 0))(arrays, grad)

    def two(x):
        return jax.ShapeDtypeStruct((2, *x.shape), x.dtype)

    with lowering_for(HOPPER):
        traced = jax.jit(per_example).trace(jax.tree.map(two, tuple(arrays)), two(grad))
        text = traced.lower(lowering_platforms=("cuda",)).as_text()
        assert text.count("stablehlo.custom_call @triton_kernel_call") == 2
        checks = [
            jax.export.DisabledSafetyCheck.custom_call(name)
            for name in ("triton_kernel_call", "triton_kernel_call_ffi")
        ]
        forward = jax.jit(functools.partial(cross_scan, implementation="triton"))
        saved = jax.export.export(forward, platforms=["cuda"], disabled_checks=checks)(*arrays)
    loaded = jax.export.deserialize(saved.serialize())
    assert [x.shape for x in loaded.out_avals] == [arrays[0].shape]


@needs_jax_triton
def test_an_old_gpu_is_refused_in_words():
    turing = dataclasses.replace(HOPPER, device_kind="Tesla T4", compute_capability=75)
    arrays, _ = block(1, 3, 17, 32, 2)
    scan = functools.partial(cross_scan, implementation="triton")
    with lowering_for(turing), pytest.raises(RuntimeError, match=r"8\.0 \(Ampere\) or later.*7\.5"):
        jax.eval_shape(scan, *arrays)


def test_without_jax_triton_it_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "jax_triton", None)
    assert re.search(r'pip install "jax\[cuda12\]" jax-triton', unavailable_reason("triton", "gpu"))
    assert "triton" not in available("gpu")
    with interpreted():
        assert unavailable_reason("triton") is None
