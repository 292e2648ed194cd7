"""A model that replaces another: the old one is there whole, or the new one."""

import shutil

import jax
import numpy as np
import pytest

from posemamba_jax.files import writing
from posemamba_jax.model import PoseMambaConfig
from posemamba_jax.model.checkpoint import CheckpointError, load_model, save_model
from posemamba_jax.model.forward import abstract_params

CONFIG = PoseMambaConfig(dim=4, depth=1, num_frames=3, state_size=2)


def save(folder, value):
    shapes = abstract_params(CONFIG)
    save_model(folder, CONFIG, jax.tree.map(lambda x: np.full(x.shape, value, np.float32), shapes))


def values(folder):
    _, variables = load_model(folder)
    return {float(v) for leaf in jax.tree.leaves(variables) for v in leaf.ravel()}


def test_the_old_model_stays_until_the_new_one_is_whole(tmp_path, monkeypatch):
    save(tmp_path / "model", 1)
    seen = []

    def stop(path, text):
        seen.append(values(tmp_path / "model"))  # The new parameters are there, and not yet used.
        raise OSError(28, "No space left on device", str(path))

    with monkeypatch.context() as patch, pytest.raises(OSError):
        patch.setattr(writing, "write_text", stop)
        save(tmp_path / "model", 2)
    assert seen == [{1.0}] and values(tmp_path / "model") == {1.0}
    save(tmp_path / "model", 3)
    assert values(tmp_path / "model") == {3.0}
    assert len(list((tmp_path / "model").iterdir())) == 2  # What was left over is removed.


def test_what_a_killed_conversion_left_is_no_obstacle(tmp_path):
    save(tmp_path / "model", 1)
    half = tmp_path / "model" / "params.2.orbax-checkpoint-tmp"
    shutil.copytree(tmp_path / "model" / "params", half)
    (tmp_path / "model" / "model.json").unlink()
    save(tmp_path / "model", 2)
    assert values(tmp_path / "model") == {2.0}
    assert len(list((tmp_path / "model").iterdir())) == 2
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "params.txt").write_text("somebody's")
    with pytest.raises(CheckpointError, match="not empty and not a model"):
        save(tmp_path / "other", 1)
    assert (tmp_path / "other" / "params.txt").exists()
