"""A run that diverges, is stopped early, or meets another: its last good state stays."""

import os

import jax
import numpy as np
import pytest
import yaml
from made_run import make_run

from posemamba_jax.config import load_config
from posemamba_jax.errors import UserError
from posemamba_jax.files.locking import LOCK_FILE, lock_folder
from posemamba_jax.training import loop
from posemamba_jax.training.checkpoint import RunCheckpoints
from posemamba_jax.training.state import all_finite


@pytest.fixture
def config(tiny, tmp_path):
    """The run of two steps in `run`, to be resumed for up to twelve."""
    file = tmp_path / "tiny.yaml"
    file.write_text(yaml.safe_dump(tiny))
    make_run(load_config(["--config", str(file)]), tmp_path / "run")
    options = ["--train.resume", "true", "--train.steps", "12", "--train.max_skipped", "3"]
    return load_config(["--config", str(file), "--run_dir", str(tmp_path / "run"), *options])


def fake_steps(monkeypatch, bad_from, poison):
    """Steps that cost nothing: from `bad_from` on they are skipped, and one before poisons."""

    def compiled(*_, **__):
        def step(state, batch):
            number = int(state.step) + 1
            bad = number >= bad_from
            params = state.params
            if poison and number == bad_from - 1:
                params = jax.tree.map(lambda leaf: leaf * np.inf, params)
            state = state.replace(
                step=state.step + 1,
                params=params,
                skipped=state.skipped + bad,
                skipped_in_a_row=(state.skipped_in_a_row + 1) * bad,
            )
            return state, {"loss": np.float32(np.nan if bad else 1), "skipped": np.float32(bad)}

        return step

    def forward(*_):
        return lambda params, poses: np.pad(
            poses * float(jax.tree.leaves(params)[0].ravel()[0]), ((0, 0), (0, 0), (0, 0), (0, 1))
        )

    monkeypatch.setattr(loop, "compile_train_step", compiled)
    monkeypatch.setattr(loop, "make_forward", forward)


def steps(run_dir):
    return sorted(path.name for path in (run_dir / "checkpoints").iterdir())


@pytest.mark.parametrize("poison", [False, True])
def test_a_bad_state_never_prunes_the_last_good_one(config, monkeypatch, tmp_path, capsys, poison):
    fake_steps(monkeypatch, bad_from=6, poison=poison)
    outcome = loop.train(config, jax.devices()[:1])
    assert outcome.exit_code == 3
    said = " ".join(capsys.readouterr().out.split())
    good = int(said.partition("the last good state is step ")[2].split(";")[0])
    assert 2 <= good <= (4 if poison else 6) and str(good) in steps(tmp_path / "run")
    assert all(name == str(good) or name.endswith(".diverged") for name in steps(tmp_path / "run"))
    assert ("is left out: the prediction is not finite" in said) == poison
    with RunCheckpoints(tmp_path / "run") as checkpoints:
        assert checkpoints.latest_step() == good
    assert not (tmp_path / "run" / LOCK_FILE).exists()


def test_a_second_program_is_refused(config, tmp_path):
    with lock_folder(tmp_path / "run"), pytest.raises(UserError, match=f"process {os.getpid()} on"):
        loop.train(config, jax.devices()[:1])
    assert steps(tmp_path / "run") == ["2"]


def test_states_with_nan_are_found(config):
    state = loop.make_state(config, loop.prepare(config, jax.devices()[:1]).mesh)
    assert all_finite(state)
    bad = jax.tree.map(lambda leaf: leaf * np.nan, state.params)
    assert not all_finite(state.replace(params=bad))
