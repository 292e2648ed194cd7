"""A tiny run, trained once and looked at by many tests."""

import jax
import pytest
import yaml
from jax.experimental.compilation_cache import compilation_cache

from posemamba_jax.config import load_config
from posemamba_jax.training.loop import train

TINY = {
    "data": {
        "source": "synthetic",
        "clip_len": 9,
        "synthetic": {"num_train_clips": 10, "num_test_clips": 4},
    },
    "model": {"dim": 8, "depth": 1},
    "optim": {"learning_rate": 1e-3},
    # Three steps an epoch, the third of which straddles its end.
    "train": {"batch_size": 4, "epochs": 4, "log_every": 2, "eval_every": 2, "keep_every": 2},
    "eval": {"batch_size": 4},
}


@pytest.fixture(scope="package")
def tiny_file(tmp_path_factory):
    """The tiny run's YAML, with a compilation cache that the package's tests share."""
    folder = tmp_path_factory.mktemp("tiny")
    tree = {**TINY, "train": {**TINY["train"], "compilation_cache": str(folder / "cache")}}
    file = folder / "tiny.yaml"
    file.write_text(yaml.safe_dump(tree))
    yield file
    jax.config.update("jax_compilation_cache_dir", None)
    compilation_cache.reset_cache()


@pytest.fixture(scope="package")
def make_config(tiny_file):
    """(*overrides, run_dir=...) -> the tiny configuration."""

    def make(*overrides, run_dir="unused"):
        argv = ["--config", str(tiny_file), "--run_dir", str(run_dir), *overrides]
        return load_config(argv)

    return make


@pytest.fixture(scope="session")
def one_device():
    return jax.devices()[:1]


@pytest.fixture(scope="package")
def finished_run(make_config, one_device, tmp_path_factory):
    """(folder, outcome) of an uninterrupted run."""
    run_dir = tmp_path_factory.mktemp("runs") / "finished"
    return run_dir, train(make_config(run_dir=run_dir), one_device)
