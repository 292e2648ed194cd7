"""The authors' numbers: a model of dim 16 and depth 2, its outputs, losses and gradients."""

import numpy as np
import pytest

from posemamba_jax.convert import config_from_torch, from_torch


@pytest.fixture(scope="session")
def goldens(data_dir):
    with np.load(data_dir / "posemamba_tiny.npz") as file:
        return dict(file)


@pytest.fixture(scope="session")
def release_state(goldens):
    """The weights under the checkpoint's keys."""
    prefix = "param/"
    return {k.removeprefix(prefix): v for k, v in goldens.items() if k.startswith(prefix)}


@pytest.fixture(scope="session")
def variables(release_state):
    return from_torch(release_state)


@pytest.fixture(scope="session")
def config(release_state):
    return config_from_torch(release_state)
