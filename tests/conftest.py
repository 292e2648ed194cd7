"""Fixtures shared by all tests."""

import os
from collections.abc import Callable
from pathlib import Path

# Eight virtual devices, so that sharded code is exercised on any machine. Set before JAX starts.
os.environ.setdefault("XLA_FLAGS", "--xla_force_host_platform_device_count=8")
os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax
import pytest

TESTS = Path(__file__).parent
SCALING = TESTS / "scaling"


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item):
    """Compiles for the compiler's time rather than the program's, which is most of what tests take.

    Not where programs are made for a TPU and looked at, and not where
    JAX_DISABLE_MOST_OPTIMIZATIONS says so: CI compares the model's numbers in both ways.
    """
    quickly = "JAX_DISABLE_MOST_OPTIMIZATIONS" not in os.environ and item.path.parent != SCALING
    jax.config.update("jax_disable_most_optimizations", quickly)


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
