"""Every test of the scan runs for each implementation that this machine can run."""

import pytest
from selective_scan_jax import implementations

# Its code takes XLA long to compile; what every run checks of it is its numbers.
SLOW_TO_COMPILE = "associative"


def pytest_generate_tests(metafunc):
    if "implementation" not in metafunc.fixturenames:
        return
    numbers = metafunc.module.__name__.endswith("test_selective_scan") and (
        metafunc.function.__name__ == "test_matches_float64"
    )
    params = []
    for name, why in implementations().items():
        marks = [] if why is None else [pytest.mark.skip(reason=why)]
        if name == SLOW_TO_COMPILE and not numbers:
            marks.append(pytest.mark.slow)
        params.append(pytest.param(name, id=name, marks=marks))
    metafunc.parametrize("implementation", params)
