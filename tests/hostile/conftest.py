"""A folder with a small run, models, weights, keypoints and configurations, made once."""

import dataclasses
import shutil

import jax
import numpy as np
import pytest
import yaml
from jax.experimental.compilation_cache import compilation_cache

from posemamba_jax import data
from posemamba_jax.config import load_config
from posemamba_jax.convert import to_torch
from posemamba_jax.data import pipeline
from posemamba_jax.model.mesh import make_mesh
from posemamba_jax.training import run_log
from posemamba_jax.training.checkpoint import RunCheckpoints, load_model, save_model
from posemamba_jax.training.state import abstract_state

TINY = {
    "run_dir": "run",
    "data": {
        "source": "synthetic",
        "clip_len": 9,
        "synthetic": {"num_train_clips": 4, "num_test_clips": 2},
    },
    "model": {"dim": 8, "depth": 1, "state_size": 4},
    "optim": {"learning_rate": 1e-3},
    "train": {"batch_size": 2, "epochs": 2, "log_every": 1},
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


def make_run(config, run_dir):
    """Writes the folder of a run of two steps without training; returns its parameters."""
    config = dataclasses.replace(config, run_dir=str(run_dir))
    rng = np.random.default_rng(0)
    shapes = abstract_state(config, make_mesh(config.mesh, jax.devices()[:1]))

    def fill(leaf):
        values = rng.uniform(0.01, 0.1, leaf.shape) if leaf.dtype == np.float32 else 2
        return jax.device_put(np.full(leaf.shape, values, leaf.dtype), leaf.sharding)

    state = jax.tree.map(fill, shapes)
    run_log.write_run_files(config)
    with run_log.RunLog(run_dir, 0) as log:
        log.write(1, 0.5, {"loss": 2.0}, "train")
        log.write(2, 1.0, {"loss": 1.0}, "train")
        log.write(2, 1.0, {"mpjpe_mm": 50.0}, "test")
    with RunCheckpoints(run_dir) as checkpoints:
        position = pipeline.train_batches(
            data.build(config.data, "train"), batch_size=config.train.batch_size, seed=config.seed
        )
        progress = {"pipeline": position.get_state(), "evaluated_step": 2, "window": []}
        checkpoints.save(state, progress, config)
        checkpoints.save_best(state, progress, config, 50.0)
    return jax.device_get(state.params)
