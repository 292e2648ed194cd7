"""Every test of the scan runs for each implementation that this machine can run."""

import pytest
from selective_scan_jax import associative, implementations, xla_chunk

# Takes XLA long to compile; what every run checks of it is its numbers against float64.
SLOW_TO_COMPILE = "associative"


def pytest_generate_tests(metafunc):
    if "implementation" not in metafunc.fixturenames:
        return
    always = metafunc.definition.nodeid.endswith("test_selective_scan.py::test_matches_float64")
    params = []
    for name, why in implementations().items():
        marks = [] if why is None else [pytest.mark.skip(reason=why)]
        if name == SLOW_TO_COMPILE and not always:
            marks.append(pytest.mark.slow)
        params.append(pytest.param(name, id=name, marks=marks))
    metafunc.parametrize("implementation", params)


@pytest.fixture
def short_chunks(monkeypatch):
    """Chunks of four steps: many of them in a short sequence, and a fraction of the compile time.

    For tests of what surrounds a chunk; the comparisons with float64 use the real lengths.
    """
    monkeypatch.setattr(xla_chunk, "CHUNK_LENGTHS", (4,))
    monkeypatch.setattr(associative, "CHUNK", 4)
