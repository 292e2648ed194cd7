"""Fixtures of the prediction tests."""

import jax
import numpy as np
import pytest
from moving_people import WINDOW, walking

from posemamba_jax.model import PoseMamba, PoseMambaConfig
from posemamba_jax.predict.lift import make_predict


@pytest.fixture
def people() -> dict[int, np.ndarray]:
    """Two people who pass each other; the second is away in frames 10-14."""
    two = {1: walking(40), 2: walking(40, (480.0, 260.0), (-2.0, 0.0), seed=1)}
    two[2][10:15] = np.nan
    return two


@pytest.fixture(scope="session")
def random_model():
    """A PoseMamba with random weights; call it with batches of 1 or 3, since each size compiles.

    Its position embedding is large, so that windows disagree, but smooth in time, since white noise
    would shake every frame and hide the borders.
    """
    config = PoseMambaConfig(dim=16, depth=1, num_frames=WINDOW, state_size=4)
    model = PoseMamba(config)
    variables = jax.jit(model.init)(jax.random.key(0), np.zeros((1, WINDOW, 17, 2), np.float32))
    phase = np.random.default_rng(0).uniform(0, 6, (1, 1, 16))
    embedding = np.sin(0.1 * np.arange(WINDOW)[None, :, None] + phase)
    params = {**variables["params"], "temporal_pos": embedding.astype(np.float32)}
    return make_predict(config, {"params": params})
