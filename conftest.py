"""A time budget for test runs that must end, however slow the machine is."""

import hashlib
import subprocess
import time
from pathlib import Path

import pytest

_STARTED = time.monotonic()


def pytest_addoption(parser):
    parser.addoption(
        "--time_budget",
        type=float,
        metavar="SECONDS",
        help="skip, and say so, what has not begun by then; files come in an order that changes "
        "with the commit, so that it is not always the same ones",
    )


def pytest_collection_modifyitems(config, items):
    if config.getoption("time_budget") is None:
        return
    commit = subprocess.run(
        ["git", "rev-parse", "HEAD"], cwd=Path(__file__).parent, capture_output=True, text=True
    ).stdout
    items.sort(key=lambda item: hashlib.sha256(f"{commit}{item.path.name}".encode()).digest())


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item):
    budget = item.config.getoption("time_budget")
    if budget is not None and time.monotonic() - _STARTED > budget:
        pytest.skip(f"not begun within the budget of {budget:.0f} s")
