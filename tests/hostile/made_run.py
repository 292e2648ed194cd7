"""The folder of a run of two steps that was never trained, so that making it takes no time."""

import dataclasses

import jax
import numpy as np

from posemamba_jax import data
from posemamba_jax.data import pipeline
from posemamba_jax.data.identity import identify
from posemamba_jax.model.mesh import make_mesh
from posemamba_jax.skeleton import H36M17
from posemamba_jax.training import run_log
from posemamba_jax.training.checkpoint import RunCheckpoints
from posemamba_jax.training.state import abstract_state


def make_run(config, run_dir):
    """Writes the folder of a run of two steps without training; returns its parameters."""
    config = dataclasses.replace(config, run_dir=str(run_dir))
    rng = np.random.default_rng(0)
    shapes = abstract_state(config, make_mesh(config.mesh, jax.devices()[:1]))

    def fill(leaf):
        values = rng.uniform(0.01, 0.1, leaf.shape) if leaf.dtype == np.float32 else 2
        return jax.device_put(np.full(leaf.shape, values, leaf.dtype), leaf.sharding)

    state = jax.tree.map(fill, shapes)
    run_log.write_run_files(config, H36M17, "00c0ffee0000")
    with run_log.RunLog(run_dir, 0) as log:
        log.write(1, 0.5, {"loss": 2.0}, "train")
        log.write(2, 1.0, {"loss": 1.0}, "train")
        log.write(2, 1.0, {"mpjpe_mm": 50.0}, "test")
    with RunCheckpoints(run_dir, skeleton=H36M17) as checkpoints:
        position = pipeline.train_batches(
            data.build(config.data, "train"), batch_size=config.train.batch_size, seed=config.seed
        )
        progress = {
            "pipeline": position.get_state(),
            "evaluated_step": 2,
            "window": [],
            "course": "00c0ffee0000",
            "proven_step": 2,
            "training_set": identify(config.data, "train"),
            "test_set": identify(config.data, "test"),
        }
        checkpoints.save(state, progress, config)
        checkpoints.save_best(state, progress, config, 50.0)
    return jax.device_get(state.params)
