"""Fixtures of the prediction tests."""

import numpy as np
import pytest
from moving_people import walking


@pytest.fixture
def people() -> dict[int, np.ndarray]:
    """Two people who pass each other; the second is away in frames 10-14."""
    two = {1: walking(40), 2: walking(40, (480.0, 260.0), (-2.0, 0.0), seed=1)}
    two[2][10:15] = np.nan
    return two
