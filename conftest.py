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
        help="skip, and say so, what has not begun by then; long tests come first, lest a core "
        "wait for them at the end, then files in an order that changes with the commit, lest "
        "always the same be skipped",
    )


def pytest_collection_modifyitems(config, items):
    if config.getoption("time_budget") is None:
        return
    commit = subprocess.run(
        ["git", "rev-parse", "HEAD"], cwd=Path(__file__).parent, capture_output=True, text=True
    ).stdout

    def place(item):
        drawn = hashlib.sha256(f"{commit}{item.path.name}".encode()).digest()
        return item.get_closest_marker("long") is None, drawn

    items.sort(key=place)


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item):
    budget = item.config.getoption("time_budget")
    if budget is not None and time.monotonic() - _STARTED > budget:
        pytest.skip(f"not begun within the budget of {budget:.0f} s")
