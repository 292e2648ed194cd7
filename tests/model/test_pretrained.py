"""Models that are installed with the package: packed, listed, found by name, and good."""

import json

import jax
import numpy as np
import pytest

from posemamba_jax import pretrained
from posemamba_jax.config import load_config
from posemamba_jax.data.sources import synthetic
from posemamba_jax.errors import UserError
from posemamba_jax.evaluation import baselines, evaluate
from posemamba_jax.evaluation.checkpoint import load_frame_rate
from posemamba_jax.model import PoseMambaConfig
from posemamba_jax.model.checkpoint import (
    CheckpointError,
    load_arrays,
    load_model,
    load_skeleton,
    save_model,
)
from posemamba_jax.model.forward import abstract_params, make_predict
from posemamba_jax.pictures.evaluation import main as evaluate_program
from posemamba_jax.predict import run as prediction
from posemamba_jax.predict.frame_rate import Sampling
from posemamba_jax.predict.lift import lift
from posemamba_jax.predict.options import PredictOptions
from posemamba_jax.pretrained import __main__ as program
from posemamba_jax.pretrained import index
from posemamba_jax.skeleton import H36M17
from posemamba_jax.training.warm_start import start_from

CONFIG = PoseMambaConfig(dim=4, depth=1, num_frames=3, state_size=2, input_frame="person")
SHIPPED = pretrained.available()


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """An empty place for models, in the package's stead."""
    (tmp_path / "index.json").write_text("{}")
    monkeypatch.setattr(index, "_FOLDER", tmp_path)
    return tmp_path


@pytest.fixture
def packed(folder):
    """A model of random parameters, packed as `tiny`; its parameters."""
    rng = np.random.default_rng(0)
    params = jax.tree.map(
        lambda x: rng.normal(size=x.shape).astype(np.float32), abstract_params(CONFIG)
    )
    save_model(folder / "model", CONFIG, params, {"fps": 30}, skeleton=H36M17)
    arguments = [str(folder / "model"), "tiny", "--description", "trained on nothing"]
    assert program.main(["pack", *arguments]) == 0
    return params


def test_a_packed_model_is_read_back_bit_for_bit(folder, packed):
    model, variables = pretrained.load("tiny")
    assert model.config == CONFIG
    jax.tree.map(np.testing.assert_array_equal, variables["params"], packed)
    assert load_skeleton("pretrained:tiny") == H36M17 and load_frame_rate("pretrained:tiny") == 30
    arrays = load_arrays("pretrained:tiny")
    np.testing.assert_array_equal(arrays["params/head/kernel"], packed["head"]["kernel"])

    first = (folder / "tiny.npz").read_bytes()
    program.pack(str(folder / "tiny.npz"), "again", "the same")
    again = json.loads((folder / "index.json").read_text())["again"]
    program.pack(str(folder / "model"), "tiny", "trained on nothing")
    assert (folder / "tiny.npz").read_bytes() == first
    assert again["description"] == "the same" and list(pretrained.available()) == ["tiny", "again"]


def test_models_are_listed(folder, packed, capsys):
    assert program.main([]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "pretrained:tiny  trained on nothing"
    (model,) = pretrained.available().values()
    assert (model.name, model.description) == ("tiny", "trained on nothing")


def test_unknown_names_and_damaged_files_are_refused(folder, packed):
    for read in (pretrained.load, lambda name: load_model(f"pretrained:{name}")):
        with pytest.raises(pretrained.PretrainedError, match="no such model; installed: tiny"):
            read("huge")
    file = folder / "tiny.npz"
    content = file.read_bytes()
    file.write_bytes(content[:-100] + bytes(1) + content[-99:])
    with pytest.raises(pretrained.PretrainedError, match=r"tiny\.npz: damaged \(SHA-256"):
        pretrained.load("tiny")
    # A file that nobody gave a hash for says by itself that it is not whole, or something else.
    for wrong, words in ((content[:-100], "not a complete"), (b"PK", "no complete")):
        file.write_bytes(wrong)
        with pytest.raises(CheckpointError, match=words):
            load_model(file)
    np.savez(file, keypoints=np.zeros((3, 17, 2)))
    with pytest.raises(CheckpointError, match="not the file of a model"):
        load_model(file)
    file.unlink()
    with pytest.raises(pretrained.PretrainedError, match=r"tiny\.npz: cannot be read"):
        pretrained.load("tiny")
    with pytest.raises(pretrained.PretrainedError, match="expected letters"):
        program.pack(str(folder / "model"), "../tiny", "trained on nothing")


def test_a_run_starts_from_a_model_by_its_name(make_state_of, folder, packed):
    state, config = make_state_of(CONFIG, "pretrained:tiny")
    np.testing.assert_array_equal(state.params["head"]["kernel"], packed["head"]["kernel"])
    with pytest.raises(UserError, match="no such model"):
        make_state_of(CONFIG, "pretrained:huge")


@pytest.fixture
def make_state_of():
    """Makes the state that a run starts with, from a model and what it starts from."""
    from posemamba_jax.model.mesh import make_mesh
    from posemamba_jax.training.state import make_state

    def make(model, init_from):
        argv = [f"--model.{key}={getattr(model, key)}" for key in ("dim", "depth", "state_size")]
        argv += ["--model.input_frame=person", "--data.clip_len=3", "--data.source=synthetic"]
        config = load_config([*argv, f"--train.init_from={init_from}"])
        mesh = make_mesh(config.mesh, jax.devices()[:1])
        return start_from(make_state(config, mesh), config), config

    return make


def test_eval_takes_a_name_and_writes_into_a_folder_of_that_name(folder, packed, monkeypatch):
    monkeypatch.chdir(folder)
    data = ["--data.source=synthetic", "--data.synthetic.num_test_clips=2", "--eval.batch_size=2"]
    argv = ["--checkpoint", "pretrained:tiny", "--pictures", "0", *data]
    assert evaluate_program(argv, jax.devices()[:1]) == 0
    report = json.loads((folder / "runs" / "tiny" / "eval" / "report.json").read_text())
    assert report["clips"] == 2 and report["frames"] == 6


@pytest.fixture
def keypoints(tmp_path):
    """A file with 8 frames of one person at 60 per second."""
    rng = np.random.default_rng(0)
    poses = 300 + 100 * rng.normal(size=(17, 2)) + np.linspace(0, 20, 8)[:, None, None]
    np.savez(tmp_path / "k.npz", keypoints=poses, image_size=[640, 480], fps=60.0)
    return poses


def test_predict_takes_the_installed_model_and_its_frame_rate(folder, packed, keypoints, capsys):
    options = {"out": str(folder / "out"), "outputs": "npz", "trajectory": "none"}
    prediction.run(PredictOptions(str(folder / "k.npz"), **options))
    printed = capsys.readouterr().out
    assert "model: pretrained:tiny, trained on nothing (docs/model_card.md)" in printed
    assert "trained at 30 frames per second: keypoints are lifted as 2 interleaved" in printed
    with np.load(folder / "out" / "person_1.npz") as file:
        found = file["poses_3d"]
    named = PredictOptions(str(folder / "k.npz"), checkpoint="pretrained:tiny", **options)
    prediction.run(named)
    assert "model: " not in capsys.readouterr().out
    with np.load(folder / "out" / "person_1.npz") as file:
        np.testing.assert_array_equal(found, file["poses_3d"])
    (folder / "index.json").write_text("{}")
    with pytest.raises(UserError, match="--checkpoint is missing: give the folder of a run"):
        prediction.run(PredictOptions(str(folder / "k.npz"), **options))


def mean_of_window(poses_2d):
    """Stands for a model: every frame is the mean over the window, so that its length shows."""
    mean = np.broadcast_to(poses_2d.mean(axis=1, keepdims=True), poses_2d.shape)
    return np.concatenate([mean, poses_2d[..., :1]], axis=-1)


@pytest.mark.parametrize(
    "fps, sampling",
    [(30, (1, 1)), (25, (1, 1)), (60, (2, 1)), (50, (2, 1)), (120, (4, 1)), (15, (1, 2))],
)
def test_keypoints_reach_the_model_at_its_frame_rate(fps, sampling):
    chosen = Sampling.of(fps, 30)
    assert chosen == sampling
    assert bool(chosen.describe(fps, 30)) == (chosen != (1, 1))
    # Joints at constant speeds, whose means do not depend on how frames are spread.
    time = np.arange(37) / fps
    poses_2d = (time[:, None, None] * np.arange(34).reshape(17, 2) / 34).astype(np.float32)
    windows = []
    found = chosen.lift(mean_of_window, poses_2d, 9, flip=False, on_progress=windows.append)
    assert sum(windows) == chosen.count_windows(37, 9)
    relative = poses_2d - poses_2d[:, :1]
    np.testing.assert_allclose(found[..., 2], relative[..., 0], atol=1e-6)
    as_they_come = lift(mean_of_window, poses_2d, 9, flip=False)
    same = np.allclose(found[..., :2], as_they_come[..., :2], atol=1e-6)
    assert same == (sampling == (1, 1))
    for frames in (1, 2, 3):
        assert chosen.lift(mean_of_window, poses_2d[:frames], 9, flip=False).shape[0] == frames
    assert Sampling.of(fps, None) == Sampling()


@pytest.mark.parametrize("name", SHIPPED)
def test_a_shipped_model_is_whole_and_good_on_generated_motion(name):
    assert SHIPPED[name].file.stat().st_size <= index.MAX_BYTES
    model, variables = pretrained.load(name)
    frames, fps = model.config.num_frames, load_frame_rate(f"pretrained:{name}")
    assert fps is not None and load_skeleton(f"pretrained:{name}") == H36M17
    options = synthetic.SyntheticConfig(num_train_clips=60, num_test_clips=24, fps=fps)
    train, test = (
        synthetic.build(options, clip_len=frames, stride=frames, split=split, input_2d="detected")
        for split in ("train", "test")
    )
    mean_pose = evaluate(baselines.fit(train)["mean pose"], test, batch_size=24)
    found = evaluate(make_predict(model.config, variables), test, batch_size=24)
    assert found.mpjpe_mm < 0.7 * mean_pose.mpjpe_mm
    assert found.p_mpjpe_mm < 0.7 * mean_pose.p_mpjpe_mm
