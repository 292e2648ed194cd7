"""A hand of 21 joints by configuration alone: trained, evaluated, drawn, resumed and lifted."""

import dataclasses
import json

import numpy as np
import pytest
import yaml
from skeletons import HAND21, REVERSED, write_hand

from posemamba_jax import data, losses
from posemamba_jax.config import ConfigError, load_config
from posemamba_jax.data.clips import ArrayClips, DataError, Recording
from posemamba_jax.errors import KeypointError, UserError
from posemamba_jax.evaluation import evaluate
from posemamba_jax.evaluation.checkpoint import open_checkpoint
from posemamba_jax.files.skeleton_file import load_skeleton, save_skeleton
from posemamba_jax.model import checkpoint as model_checkpoint
from posemamba_jax.pictures import evaluation, report
from posemamba_jax.predict.options import PredictOptions
from posemamba_jax.predict.run import run
from posemamba_jax.skeleton import H36M17
from posemamba_jax.training.loop import train
from posemamba_jax.training.setup import prepare


@pytest.fixture(scope="module")
def hand(tmp_path_factory):
    """A folder with recordings, a skeleton and a configuration."""
    folder = tmp_path_factory.mktemp("hand")
    for seed, (name, frames) in enumerate((("train", 30), ("test", 12))):
        write_hand(folder / f"{name}.npz", frames, seed)
    save_skeleton(folder / "hand.yaml", HAND21)
    config = {
        "data": {
            "source": "arrays",
            "skeleton": str(folder / "hand.yaml"),
            "clip_len": 5,
            "train_stride": 5,
            "arrays": {name: [str(folder / f"{name}.npz")] for name in ("train", "test")},
        },
        "model": {"dim": 8, "depth": 1, "state_size": 2},
        "loss": {"diff": 0, "limb_gt": 0.1},
        "train": {"batch_size": 2, "steps": 3, "log_every": 1, "compilation_cache": None},
        "eval": {"batch_size": 4},
        "mesh": {"data": 1},
    }
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    return folder


def configure(hand, *options):
    return load_config(["--config", str(hand / "config.yaml"), *options])


@pytest.fixture(scope="module")
def hand_run(hand, one_device):
    """The run's folder after three steps."""
    train(configure(hand, "--run_dir", str(hand / "run")), one_device)
    return hand / "run"


def test_the_model_follows_the_skeleton(hand):
    config = configure(hand)
    assert (config.model.num_joints, config.model.limb_walk) == (21, HAND21.limb_walk)
    assert data.build(config.data, "test")[0]["poses_2d"].shape == (5, 21, 3)
    with pytest.raises(ConfigError, match="data.skeleton: .*no such skeleton; give h36m17 or"):
        configure(hand, "--data.skeleton", "h36m18")


def test_targets_of_arrays_fit_the_image(hand):
    clip = data.build(configure(hand).data, "train")[0]
    relative = clip["poses_3d"] - clip["poses_3d"][:, :1]
    millimetres = clip["poses_3d_mm"] - clip["poses_3d_mm"][:, :1]
    np.testing.assert_allclose(
        relative * clip["mm_per_unit"][:, None, None], millimetres, atol=0.01
    )
    # The hand is 60 cm away and up to 20 cm deep, so a weak perspective is off by some percent.
    np.testing.assert_allclose(clip["poses_3d"][..., :2], clip["poses_2d"][..., :2], atol=0.06)


def test_a_run_evaluates_draws_and_resumes(hand, hand_run, one_device, tmp_path):
    assert (hand_run / "poses.png").is_file() and (hand_run / "report.json").is_file()
    assert load_skeleton(str(hand_run / "skeleton.yaml")) == HAND21
    assert model_checkpoint.load_skeleton(hand_run) == HAND21

    argv = ["--checkpoint", str(hand_run), "--output", str(tmp_path / "eval")]
    assert evaluation.main(argv, one_device) == 0
    found = json.loads((tmp_path / "eval" / "report.json").read_text())
    trained = json.loads((hand_run / "report.json").read_text())
    assert found["mpjpe_mm"] == pytest.approx(trained["mpjpe_mm"], abs=1e-3)

    opened = open_checkpoint(hand_run, devices=one_device)
    errors = report.collect_errors(opened.predict, opened.source, batch_size=4, flip=True)
    path = report.plot_per_joint({"": errors}, tmp_path / "joints.png", skeleton=HAND21)
    assert path.is_file() and len(errors.per_joint()) == 21
    assert report.draw_clips(opened.source, errors, tmp_path, count=1)

    more = load_config(["--resume", str(hand_run), "--train.steps", "4"])
    assert train(more, one_device).step == 4


def test_a_hand_is_lifted(hand, hand_run, tmp_path):
    usual = {"checkpoint": str(hand_run), "out": str(tmp_path)}
    written = run(PredictOptions(str(hand / "test.npz"), smooth=True, **usual))
    assert {path.suffix for path in written} == {".npz", ".json", ".csv"}
    result = np.load(tmp_path / "person_1.npz")
    assert result["poses_3d"].shape == (12, 21, 3) and np.isfinite(result["poses_3d"]).all()
    assert result["joint_names"].tolist() == list(HAND21.joints)
    np.testing.assert_array_equal(result["poses_3d"][:, 0], 0)
    for options, message in (
        ({"height_mm": 1700.0}, "--height_mm: for models of Human3.6M-17 only"),
        ({"outputs": "bvh"}, "--outputs bvh: for models"),
        ({"joint_set": "coco17"}, "--joint_set coco17"),
    ):
        with pytest.raises(UserError, match=message):
            run(PredictOptions(str(hand / "test.npz"), **usual, **options))
    np.save(tmp_path / "body.npy", np.ones((9, 17, 2)) * np.arange(1, 18)[:, None])
    with pytest.raises(KeypointError, match="has 17 joints, but the model lifts the 21 of hand-21"):
        run(PredictOptions(str(tmp_path / "body.npy"), **usual))


def test_other_joints_are_refused_by_the_first_that_differs(hand, hand_run, one_device, tmp_path):
    renamed = dataclasses.replace(HAND21, name="other", joints=(*HAND21.joints[:20], "tip"))
    save_skeleton(tmp_path / "other.yaml", renamed)
    other = ["--data.skeleton", str(tmp_path / "other.yaml")]
    difference = "joint 20 is 'little_4' .* in hand-21 and 'tip' .* in other"
    with pytest.raises(UserError, match=f"trained on the skeleton hand-21.*{difference}"):
        train(load_config(["--resume", str(hand_run), *other, "--train.steps", "9"]), one_device)
    with pytest.raises(UserError, match=f"but the checkpoint .*{difference}"):
        open_checkpoint(hand_run, other, devices=one_device)
    with pytest.raises(DataError, match="data.skeleton, h36m17, has Human3.6M-17: joint 0"):
        source = data.build(configure(hand).data, "test")
        data.check_skeleton(H36M17, "data.skeleton, h36m17,", source)
    synthetic = ["--data.source", "synthetic"]
    with pytest.raises(UserError, match="synthetic has the skeleton Human3.6M-17, but data.skel"):
        prepare(configure(hand, *synthetic), one_device)
    with pytest.raises(ConfigError, match="loss.diff: .*set its weight to 0"):
        prepare(configure(hand, "--loss.diff", "0.5"), one_device)


def test_seventeen_joints_in_another_order_are_trained_and_scored_as_what_they_are():
    order = np.array([H36M17.joints.index(name) for name in REVERSED.joints])
    rng = np.random.default_rng(0)
    pred, target = rng.normal(size=(2, 2, 5, 17, 3)).astype(np.float32)
    weights = losses.LossWeights(**dict.fromkeys(losses.TERMS, 1.0))
    losses.check_terms(weights, REVERSED)
    usual, terms = losses.total(pred, target, weights)
    total, reordered = losses.total(pred[..., order, :], target[..., order, :], weights, REVERSED)
    np.testing.assert_allclose(total, usual, rtol=1e-5)
    for name in terms:
        np.testing.assert_allclose(reordered[name], terms[name], rtol=1e-5, err_msg=name)

    def make(skeleton, order, protocol):
        poses = target.reshape(-1, 17, 3)[:, order]
        return ArrayClips(
            "made-up",
            [Recording("a", "walk", 0, 10)],
            skeleton=skeleton,
            poses_2d=poses,
            poses_3d=poses,
            poses_3d_mm=200 * poses,
            mm_per_unit=np.full(10, 200, np.float32),
            clip_len=5,
            stride=5,
            fps=50.0,
            protocol=protocol,
        )

    def skew(poses_2d):
        # Not symmetric, so that a flip with wrong pairs shows.
        x = poses_2d[..., :1]
        return np.concatenate([poses_2d, x * (1 + poses_2d[..., 1:] ** 2)], axis=-1)

    for protocol in ("h36m", "mpi_inf_3dhp"):
        reports = [
            evaluate(skew, make(skeleton, joints, protocol), batch_size=2)
            for skeleton, joints in ((H36M17, np.arange(17)), (REVERSED, order))
        ]
        figures = [
            [value for value in vars(one).values() if isinstance(value, float)] for one in reports
        ]
        np.testing.assert_allclose(figures[1], figures[0], rtol=1e-5)
    with pytest.raises(DataError, match="the skeleton hand-21 has not all of them"):
        clips = make(H36M17, np.arange(17), "mpi_inf_3dhp")
        clips.skeleton = HAND21
        evaluate(skew, clips)


def test_a_model_without_a_walk_takes_the_skeletons(hand, one_device, monkeypatch):
    """A source may come with a skeleton that the configuration does not name."""
    config = load_config(["--data.source", "synthetic", "--data.clip_len", "5", "--mesh.data", "1"])
    build = data.build

    def reordered(options, split):
        source = build(options, split)
        source.skeleton = REVERSED
        return source

    monkeypatch.setattr(data, "build", reordered)
    assert prepare(config, one_device).config.model.limb_walk == REVERSED.limb_walk
