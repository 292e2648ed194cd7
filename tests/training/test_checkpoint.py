"""Checkpoints: what is kept, what comes back, and what is said of those that cannot be used."""

import dataclasses
import json
import logging
import shutil

import jax
import numpy as np
import pytest

from posemamba_jax.config import to_dict
from posemamba_jax.config.schema import MeshConfig
from posemamba_jax.model.mesh import make_mesh
from posemamba_jax.training.checkpoint import (
    CheckpointError,
    RunCheckpoints,
    find_checkpoint,
    load_model,
    load_run_config,
    save_model,
)
from posemamba_jax.training.state import abstract_state, make_state


def assert_equal(a, b):
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(a), jax.device_get(b))


@pytest.fixture(scope="module")
def config(make_config):
    return make_config()


@pytest.fixture(scope="module")
def state(config, one_device):
    return make_state(config, make_mesh(config.mesh, one_device))


def at_step(state, step):
    """The state with another step number and other parameters."""
    params = jax.tree.map(lambda leaf: leaf + step, state.params)
    return state.replace(step=state.step * 0 + step, params=params)


@pytest.fixture(scope="module")
def run_dir(config, state, tmp_path_factory):
    """Steps 1 to 6 saved; 3 and 6 stay for good, 2 was the best."""
    run_dir = tmp_path_factory.mktemp("checkpoints")
    with RunCheckpoints(run_dir, keep_last=2, keep_steps=range(3, 7, 3)) as checkpoints:
        assert checkpoints.claim_best(9, {}) == float("inf")
        for step in range(1, 7):
            checkpoints.save(at_step(state, step), {"step": step}, config)
            if step <= 2:
                error = 100.0 - step
                checkpoints.save_best(at_step(state, step), {"step": step}, config, error)
    return run_dir


def test_latest_periodic_and_best_stay(run_dir):
    assert sorted(p.name for p in (run_dir / "checkpoints").iterdir()) == ["3", "5", "6"]
    assert [p.name for p in (run_dir / "best").iterdir()] == ["2"]
    with RunCheckpoints(run_dir, keep_last=2, keep_steps=range(3, 7, 3)) as checkpoints:
        assert checkpoints.latest_step() == 6
        assert checkpoints.claim_best(10**6, {}) == 98.0


def test_everything_comes_back(run_dir, config, state, one_device):
    with RunCheckpoints(run_dir, keep_last=2) as checkpoints:
        abstract = abstract_state(config, make_mesh(config.mesh, one_device))
        found, progress = checkpoints.restore(abstract)
    assert progress == {"step": 6}
    assert_equal(found, at_step(state, 6))


def test_other_meshes_can_go_on(run_dir, config, state):
    mesh = make_mesh(MeshConfig(data=2, fsdp=2, tensor=2))
    with RunCheckpoints(run_dir, keep_last=2) as checkpoints:
        found, _ = checkpoints.restore(abstract_state(config, mesh))
    assert_equal(found, at_step(state, 6))
    kernel = found.params["blocks"]["temporal"]["mlp"]["fc1"]["kernel"]
    assert kernel.sharding.mesh.shape == {"data": 2, "fsdp": 2, "tensor": 2}


def test_average_starts_from_the_parameters(run_dir, config, state, one_device):
    with_ema = dataclasses.replace(config, optim=dataclasses.replace(config.optim, ema=0.5))
    abstract = abstract_state(with_ema, make_mesh(config.mesh, one_device))
    with RunCheckpoints(run_dir, keep_last=2) as checkpoints:
        found, _ = checkpoints.restore(abstract)
    assert_equal(found.ema, found.params)


def test_another_model_is_refused_with_a_table(run_dir, config, one_device):
    other = dataclasses.replace(config, model=dataclasses.replace(config.model, dim=12))
    abstract = abstract_state(other, make_mesh(config.mesh, one_device))
    with (
        RunCheckpoints(run_dir, keep_last=2) as checkpoints,
        pytest.raises(CheckpointError) as caught,
    ):
        checkpoints.restore(abstract)
    message = str(caught.value)
    assert str(run_dir / "checkpoints" / "6") in message
    assert "blocks/spatial/mlp/fc1/kernel" in message
    assert "(1, 8, 16)" in message and "(1, 12, 24)" in message


def test_model_of_a_run(run_dir, config, state):
    for folder, which, step in (
        (run_dir, "best", 2),
        (run_dir, "latest", 6),
        (run_dir / "checkpoints", "best", 6),
        (run_dir / "checkpoints" / "3", "best", 3),
    ):
        model_config, variables = load_model(folder, which)
        assert model_config == config.model
        assert_equal(variables["params"], at_step(state, step).params)
        assert load_run_config(folder, which) == config


def test_model_alone(tmp_path, config, state):
    folder = tmp_path / "model"
    save_model(folder, config.model, state.params, {"converted_from": "somewhere"})
    model_config, variables = load_model(folder)
    assert model_config == config.model
    assert_equal(variables, {"params": state.params})
    assert json.loads((folder / "model.json").read_text())["metadata"] == {
        "converted_from": "somewhere"
    }
    assert load_run_config(folder) is None
    # Written again, it is replaced.
    save_model(folder, config.model, at_step(state, 1).params)
    assert_equal(load_model(folder)[1]["params"], at_step(state, 1).params)


def test_model_is_not_written_over_something_else(tmp_path, config, state):
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(CheckpointError, match="not empty"):
        save_model(tmp_path, config.model, state.params)


def test_parameters_must_be_the_models(tmp_path, config, state):
    other = dataclasses.replace(config.model, depth=2)
    with pytest.raises(CheckpointError, match="not this model's parameters"):
        save_model(tmp_path / "model", other, state.params)
    save_model(tmp_path / "model", config.model, state.params)
    about = json.loads((tmp_path / "model" / "model.json").read_text())
    about["model"] = to_dict(other)
    (tmp_path / "model" / "model.json").write_text(json.dumps(about))
    with pytest.raises(CheckpointError, match=r"\(1, .*\(2, "):
        load_model(tmp_path / "model")


def test_what_is_not_a_checkpoint(tmp_path):
    file = tmp_path / "best_epoch.bin"
    file.write_bytes(b"x")
    with pytest.raises(CheckpointError, match="posemamba_jax.convert"):
        find_checkpoint(file)
    with pytest.raises(CheckpointError, match="holds no checkpoint"):
        find_checkpoint(tmp_path)
    with pytest.raises(CheckpointError, match="no such folder"):
        find_checkpoint(tmp_path / "nothing")
    (tmp_path / "model.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"model\.json"):
        load_model(tmp_path)
    with RunCheckpoints(tmp_path / "run") as checkpoints:
        assert checkpoints.latest_step() is None
        with pytest.raises(CheckpointError, match="no checkpoint to resume"):
            checkpoints.restore(None)


def truncate(item):
    for file in [*item.glob("d/*"), *item.glob("ocdbt.process_0/d/*"), item / "metadata"]:
        if file.is_file():
            file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def delete_files(item):
    for file in [*item.glob("d/*"), *item.glob("ocdbt.process_0/d/*"), item / "metadata"]:
        file.unlink(missing_ok=True)


def write_garbage(item):
    for file in [item / "_METADATA", item / "manifest.ocdbt", item / "metadata"]:
        if file.is_file():
            file.write_bytes(b"{garbage\x00\xff")


def empty(item):
    shutil.rmtree(item)
    item.mkdir()


QUICK = [(truncate, "params"), (delete_files, "rest"), (write_garbage, "progress"), (empty, "")]
DAMAGES = [
    *((truncate, item) for item in ("params", "rest", "progress")),
    *((delete_files, item) for item in ("params", "rest", "progress")),
    *((write_garbage, item) for item in ("params", "rest", "progress")),
    *((empty, item) for item in ("params", "rest", "progress", "")),
    (shutil.rmtree, "params"),
    (shutil.rmtree, "rest"),
]


@pytest.mark.parametrize(
    ("damage", "what"),
    [d if d in QUICK else pytest.param(*d, marks=pytest.mark.slow) for d in DAMAGES],
    ids=lambda value: getattr(value, "__name__", value),
)
def test_damaged_latest_is_named_and_the_one_before_used(
    damage, what, tmp_path, config, state, one_device, caplog, capfd
):
    with RunCheckpoints(tmp_path, keep_last=2) as checkpoints:
        for step in (1, 2):
            checkpoints.save(at_step(state, step), {"step": step}, config)
    damage(tmp_path / "checkpoints" / "2" / what)
    abstract = abstract_state(config, make_mesh(config.mesh, one_device))
    with (
        RunCheckpoints(tmp_path, keep_last=2) as checkpoints,
        caplog.at_level(logging.WARNING),
    ):
        found, progress = checkpoints.restore(abstract)
        assert progress == {"step": 1}
        assert_equal(found, at_step(state, 1))
        checkpoints.save(at_step(state, 2), {"step": 2}, config)
        checkpoints.wait()
        assert checkpoints.restore(abstract)[1] == {"step": 2}
    assert f"{tmp_path / 'checkpoints' / '2'} is damaged" in caplog.text
    assert (tmp_path / "checkpoints" / "2.damaged").is_dir()
    assert "Traceback" not in capfd.readouterr().err


def test_when_all_are_damaged_they_are_left_alone(tmp_path, config, state, one_device):
    with RunCheckpoints(tmp_path, keep_last=2) as checkpoints:
        for step in (1, 2):
            checkpoints.save(at_step(state, step), {"step": step}, config)
    for step in "12":
        truncate(tmp_path / "checkpoints" / step / "rest")
    abstract = abstract_state(config, make_mesh(config.mesh, one_device))
    with (
        RunCheckpoints(tmp_path, keep_last=2) as checkpoints,
        pytest.raises(CheckpointError, match="no checkpoint can be read") as caught,
    ):
        checkpoints.restore(abstract)
    assert all(str(tmp_path / "checkpoints" / step) in str(caught.value) for step in "12")
    assert {p.name for p in (tmp_path / "checkpoints").iterdir()} == {"1", "2"}
