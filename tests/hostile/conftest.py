"""A folder with a small run, models, weights, keypoints and configurations, made once."""

import shutil

import jax
import pytest
import yaml
from jax.experimental.compilation_cache import compilation_cache
from made_run import make_run

from posemamba_jax.config import load_config
from posemamba_jax.convert import to_torch
from posemamba_jax.model.checkpoint import load_model, save_model

TINY = {
    "run_dir": "run",
    "data": {
        "source": "synthetic",
        "clip_len": 9,
        "synthetic": {"num_train_clips": 4, "num_test_clips": 2},
    },
    "model": {"dim": 8, "depth": 1, "state_size": 4},
    "optim": {"learning_rate": 1e-3},
    "train": {"batch_size": 2, "epochs": 1, "log_every": 1},
    "eval": {"batch_size": 2},
}


@pytest.fixture(scope="session")
def tiny(tmp_path_factory):
    """The configuration as a tree, with a compilation cache that all trials share."""
    cache = str(tmp_path_factory.mktemp("cache"))
    jax.config.update("jax_compilation_cache_dir", cache)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    compilation_cache.reset_cache()
    yield {**TINY, "train": {**TINY["train"], "compilation_cache": cache}}
    jax.config.update("jax_compilation_cache_dir", None)
    compilation_cache.reset_cache()


@pytest.fixture(scope="session")
def template(tiny, tmp_path_factory, data_dir):
    """The folder that each trial gets a copy of.

    run      as training with tiny.yaml for two steps leaves it, with made-up numbers
    model    its model alone
    weights.bin  the same as the authors keep theirs, where PyTorch is installed
    keypoints    a file of each format
    """
    folder = tmp_path_factory.mktemp("template")
    (folder / "home").mkdir()
    (folder / "tiny.yaml").write_text(yaml.safe_dump(tiny))
    shutil.copytree(data_dir / "keypoints", folder / "keypoints")
    params = make_run(load_config(["--config", str(folder / "tiny.yaml")]), folder / "run")
    config, _ = load_model(folder / "run")
    save_model(folder / "model", config, params)
    try:
        import torch
    except ModuleNotFoundError:
        return folder
    arrays = to_torch({"params": params})
    state = {name: torch.from_numpy(array.copy()) for name, array in arrays.items()}
    torch.save({"model_pos": state}, folder / "weights.bin")
    return folder
