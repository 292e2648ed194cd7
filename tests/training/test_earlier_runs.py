"""What earlier versions wrote still loads, evaluates and resumes."""

import json
import tarfile

import numpy as np
import pytest

from posemamba_jax.config import load_config
from posemamba_jax.evaluation.checkpoint import open_checkpoint
from posemamba_jax.files.metrics_file import read_metrics
from posemamba_jax.model import PoseMambaConfig
from posemamba_jax.model.checkpoint import load_model, load_skeleton
from posemamba_jax.skeleton import H36M17
from posemamba_jax.training.loop import train


@pytest.fixture(scope="module")
def earlier(data_dir, tmp_path_factory):
    folder = tmp_path_factory.mktemp("earlier")
    with tarfile.open(data_dir / "earlier" / "run_0_1_0.tar.xz") as archive:
        archive.extractall(folder, filter="data")
    return folder


def test_an_earlier_model_and_checkpoint_load(earlier):
    for folder in (earlier / "run", earlier / "model"):
        config, variables = load_model(folder, "latest")
        assert (config.dim, config.depth, config.implementation) == (8, 1, "xla")
        assert np.isfinite(variables["params"]["head"]["kernel"]).all()
        assert load_skeleton(folder, "latest") is H36M17


@pytest.mark.slow
def test_an_earlier_run_evaluates_and_resumes(earlier, one_device):
    """It takes the steps that it would have taken when it was started."""
    opened = open_checkpoint(earlier / "run", ["--mesh.data", "1"], devices=one_device)
    assert opened.source.skeleton is H36M17 and len(opened.source) == 3 and not opened.notes

    options = ["--resume", str(earlier / "run"), "--mesh.data", "1"]
    outcome = train(load_config(options), one_device)
    assert (outcome.step, outcome.exit_code) == (8, 0)
    expected = [json.loads(line) for line in (earlier / "uninterrupted.jsonl").open()]
    found = read_metrics(earlier / "run")
    for key in ("loss", "mpjpe_mm"):
        rows, wanted = ([row[key] for row in r if key in row] for r in (found, expected))
        np.testing.assert_allclose(rows, wanted, rtol=1e-4)
    assert load_skeleton(earlier / "run", "latest") == H36M17


@pytest.mark.parametrize(
    ("earlier_name", "name"), [("pallas_tpu", "mosaic_tpu"), ("pallas_gpu", "mosaic_gpu")]
)
def test_implementations_that_were_renamed_keep_their_earlier_names(earlier_name, name):
    assert PoseMambaConfig(implementation=earlier_name).implementation == name
    assert load_config(["--model.implementation", earlier_name]).model.implementation == name
