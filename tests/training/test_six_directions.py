"""A model of six directions, from its configuration file to a checkpoint."""

import jax
import numpy as np
import pytest
import yaml

from posemamba_jax.config import load_config
from posemamba_jax.training.checkpoint import load_model
from posemamba_jax.training.loop import train
from posemamba_jax.training.run_log import read_metrics


@pytest.mark.slow
def test_six_directions_train_from_a_file(tiny_file, one_device, tmp_path):
    joints = [3, 2, 1, 6, 5, 4, 0, 7, 8, 9, 10, 13, 12, 11, 16, 15, 14]
    grid = np.random.default_rng(0).permutation(9 * 17).tolist()
    file = tmp_path / "six.yaml"
    six = ["frames", "joints", "frames-reverse", "joints-reverse"]
    six += ["permutation0", "permutation1-reverse"]
    model = {"directions": six, "permutations": [joints, grid]}
    optim = {"learning_rate": 1e-2}
    file.write_text(yaml.safe_dump({"model": model, "optim": optim}))
    argv = ["--config", str(tiny_file), "--config", str(file), "--run_dir", str(tmp_path / "run")]
    argv += ["--train.steps", "24", "--train.eval_every", "0", "--eval.flip", "false"]
    config = load_config(argv)
    outcome = train(config, one_device)

    losses = [row["loss"] for row in read_metrics(tmp_path / "run") if "loss" in row]
    assert outcome.step == 24 and np.isfinite(losses).all()
    assert np.mean(losses[-3:]) < 0.8 * np.mean(losses[:3]), losses
    saved, variables = load_model(tmp_path / "run")
    assert saved == config.model
    # Every direction has learnt: each one's skip weights have left the ones they began as.
    skips = variables["params"]["blocks"]["spatial"]["scan"]["D"]
    assert skips.shape == (1, 6, 16) and (np.abs(jax.device_get(skips) - 1).max(-1) > 1e-3).all()
