"""Fixtures shared by all tests."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from selective_scan_jax.testing import compile_quickly, set_up_tests

set_up_tests()

TESTS = Path(__file__).parent
SCALING = TESTS / "scaling"


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item):
    # Programs made for a TPU are looked at as they are for users.
    compile_quickly(item.path.parent != SCALING)


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """Small golden arrays that travel with the repository."""
    return TESTS / "data"


@pytest.fixture(scope="session")
def mocap_dir() -> Path:
    """Real motion capture (CMU subjects 01 and 02), which may not be redistributed here."""
    default = TESTS.parent.parent / "shared" / "data" / "cmu_mocap"
    path = Path(os.environ.get("POSEMAMBA_CMU_MOCAP", default))
    if not path.is_dir():
        pytest.skip(
            "needs CMU motion capture: set POSEMAMBA_CMU_MOCAP to a folder of SUBJECT/*.asf|amc"
        )
    return path


@pytest.fixture(scope="session")
def own_lines() -> Callable[[str], list[str]]:
    """What a program of ours wrote, without JAX's words on a CUDA plugin that finds no driver."""
    notices = ("WARNING: All log messages before absl::InitializeLog()", "I0000 ")
    return lambda text: [line for line in text.splitlines() if not line.startswith(notices)]
