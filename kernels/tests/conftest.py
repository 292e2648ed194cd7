"""Every test of the scan runs for each implementation that this machine can run or interpret."""

import re

import pytest
from selective_scan_jax import backends, implementations, interpreted
from selective_scan_jax.mosaic_gpu import heuristic as mosaic_gpu_config
from selective_scan_jax.reference import associative
from selective_scan_jax.testing import compile_quickly, set_up_tests
from selective_scan_jax.xla import chunk as xla_chunk

set_up_tests()

# Tests that are left to the slow run, by implementation: those whose file and name, parameters
# included, do not match. An interpreter takes seconds for a kernel that takes microseconds, and XLA
# takes seconds to compile a scan with its gradients. Between them the quick ones cover both senses
# of time, walks along joints and along frames, both limb gradients, one joint, one frame, one step,
# ends that do not fill a chunk, and each operand absent. An implementation that is not listed, the
# native kernel, runs everything: it is compiled already.
ONE_CALL = r"selective_scan::test_the_same_twice|test_second_derivatives|test_no_clips"
QUICK = {
    # Differentiated and transformed by JAX itself.
    "reference": r"test_matches_float64\[.*(l7-|l40-|l101-|bs_bt|-limbs)"
    r"|test_reverse|test_absent|test_no_clips",
    "associative": r"test_matches_float64\[.*(l7-|l67-|l101-)|test_no_clips",
    "xla": r"^(?!.*(shard_map|permutations only|bfloat16))",
    "mosaic_tpu": rf"test_matches_float64\[.*(b2-l1-|l7-|-limbs\])|{ONE_CALL}",
    "triton": rf"test_matches_float64\[.*(b2-l1-|l7-|l67-|l40-|-limbs)|{ONE_CALL}",
    "mosaic_gpu": rf"test_matches_float64\[.*(b2-l1-|l7-|l40-|-limbs\])|{ONE_CALL}",
}

# Tests that an interpreter cannot run, by implementation, with the reason.
NOT_INTERPRETED = {
    "mosaic_gpu": {
        "remat": "the interpreter's callbacks have an effect that jax.checkpoint refuses",
        "l4131": "takes the interpreter minutes",
    },
}


def pytest_generate_tests(metafunc):
    if "implementation" not in metafunc.fixturenames:
        return
    with interpreted():
        reasons = implementations()
    params = [
        pytest.param(name, id=name, marks=[] if why is None else [pytest.mark.skip(reason=why)])
        for name, why in reasons.items()
    ]
    metafunc.parametrize("implementation", params)


def pytest_itemcollected(item):
    name = _implementation(item)
    full_name = f"{item.path.stem}::{item.name}"
    if name in QUICK and not re.search(QUICK[name], full_name):
        item.add_marker(pytest.mark.slow)
    for pattern, why in NOT_INTERPRETED.get(name, {}).items():
        if re.search(pattern, item.name) and backends.unavailable_reason(name) is not None:
            item.add_marker(pytest.mark.skip(reason=why))


def _implementation(item) -> str | None:
    return item.callspec.params.get("implementation") if hasattr(item, "callspec") else None


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item):
    # XLA's own numbers are compared with float64 as it optimises them for its users. What is tested
    # of no implementation may look at how programs are compiled.
    name = _implementation(item)
    compile_quickly(name is not None and not (name == "xla" and "matches_float64" in item.name))


@pytest.fixture(autouse=True)
def _interpret(request):
    """Runs a kernel for hardware that is not here in its interpreter."""
    name = _implementation(request.node)
    if name is None or backends.unavailable_reason(name) is None:
        yield
        return
    with interpreted():
        yield


@pytest.fixture
def short_chunks(monkeypatch):
    """Chunks of four steps: many of them in a short sequence, and a fraction of the compile time.

    For tests of what surrounds a chunk; the comparisons with float64 use the real lengths.
    """
    monkeypatch.setattr(xla_chunk, "CHUNK_LENGTHS", (4,))
    monkeypatch.setattr(associative, "CHUNK", 4)
    monkeypatch.setattr(mosaic_gpu_config, "SEGMENT", 8)
    monkeypatch.setattr(mosaic_gpu_config, "UNROLL", 2)
    monkeypatch.setattr(mosaic_gpu_config, "PROGRAMS", 8)
