"""Every test of the scan runs for each implementation that this machine can run."""

import pytest
from selective_scan_jax import implementations


def pytest_generate_tests(metafunc):
    if "implementation" not in metafunc.fixturenames:
        return
    params = [
        pytest.param(name, id=name, marks=[] if why is None else pytest.mark.skip(reason=why))
        for name, why in implementations().items()
    ]
    metafunc.parametrize("implementation", params)
