"""Models that take the confidence of keypoints, from the data to the prediction."""

import dataclasses

import jax
import numpy as np
import pytest
from moving_people import WINDOW, fake_predict, walking

from posemamba_jax import data
from posemamba_jax.config.loading import load_config
from posemamba_jax.evaluation import evaluate
from posemamba_jax.model import PoseMamba, PoseMambaConfig
from posemamba_jax.model.checkpoint import save_model
from posemamba_jax.model.forward import abstract_params, make_predict
from posemamba_jax.model.mesh import make_mesh
from posemamba_jax.predict.export.stablehlo import export_model
from posemamba_jax.predict.lift import LEAST_CONFIDENCE, LoadedModel
from posemamba_jax.predict.options import PredictOptions
from posemamba_jax.predict.run import run
from posemamba_jax.skeleton import H36M17
from posemamba_jax.training.state import make_state
from posemamba_jax.training.step import make_train_step, put_batch
from posemamba_jax.training.warm_start import start_from

FRAMES = 3
CERTAIN = PoseMambaConfig(dim=4, depth=1, num_frames=FRAMES, state_size=2, input_frame="person")
CONFIDENT = dataclasses.replace(CERTAIN, confidence=True)


def random_variables(config, seed=0):
    rng = np.random.default_rng(seed)
    shapes = abstract_params(config)
    return {"params": jax.tree.map(lambda s: rng.normal(0, 0.3, s.shape).astype("f4"), shapes)}


@pytest.fixture(scope="module")
def clips():
    """Keypoints (2, FRAMES, 17, 3) whose confidences are between 0 and 1."""
    return np.random.default_rng(1).uniform(0, 1, (2, FRAMES, 17, 3)).astype(np.float32)


@pytest.fixture(scope="module")
def predict():
    return make_predict(CONFIDENT, random_variables(CONFIDENT))


def test_the_result_depends_on_the_confidence_which_counts_as_one_where_there_is_none(
    predict, clips
):
    whole = predict(clips)
    assert whole.shape == (2, FRAMES, 17, 3)
    doubted = clips.copy()
    doubted[0, 1, 5, 2] = 0
    changed = np.abs(predict(doubted) - whole).max((1, 2, 3))
    assert changed[0] > 1e-3 and changed[1] == 0
    sure = clips.copy()
    sure[..., 2] = 1
    np.testing.assert_allclose(predict(clips[..., :2]), predict(sure), atol=1e-6)
    with pytest.raises(ValueError, match="17 joints, 2 or 3"):
        PoseMamba(CONFIDENT).init(jax.random.key(0), np.zeros((1, FRAMES, 17, 4)))


def test_size_and_place_in_the_image_leave_the_confidence_alone(predict, clips):
    moved = clips * np.array([3, 3, 1], np.float32) + np.array([0.2, -0.4, 0], np.float32)
    np.testing.assert_allclose(predict(moved), 3 * predict(clips), rtol=1e-3, atol=1e-4)


def test_a_mesh_takes_what_the_model_takes(predict, clips):
    mesh = make_mesh(load_config([]).mesh, jax.devices()[:1])
    split = make_predict(CONFIDENT, random_variables(CONFIDENT), mesh=mesh, batch_size=2)
    np.testing.assert_allclose(split(clips), predict(clips), atol=1e-5)
    plain = random_variables(CERTAIN)
    split = make_predict(CERTAIN, plain, mesh=mesh, batch_size=2)
    expected = make_predict(CERTAIN, plain)(clips[..., :2])
    np.testing.assert_allclose(split(clips), expected, atol=1e-5)


@pytest.fixture(scope="module")
def config():
    keys = {
        "data.source": "synthetic",
        "data.clip_len": FRAMES,
        "data.synthetic.num_train_clips": 4,
        "data.synthetic.num_test_clips": 4,
        "model.dim": CERTAIN.dim,
        "model.depth": CERTAIN.depth,
        "model.state_size": CERTAIN.state_size,
        "model.input_frame": CERTAIN.input_frame,
        "model.confidence": "true",
        "model.drop_path": 0,
        "train.batch_size": 2,
    }
    return load_config([f"--{key}={value}" for key, value in keys.items()])


def test_a_step_learns_from_the_confidence(config, clips):
    mesh = make_mesh(config.mesh, jax.devices()[:1])
    state = make_state(config, mesh)
    before = np.asarray(state.params["embed"]["kernel"])[-1]
    # As is the head of a new model, it may be zero: then nothing before it learns yet.
    head = state.params["head"] | {"kernel": state.params["head"]["kernel"] + 0.1}
    state = state.replace(params=state.params | {"head": head})
    step = make_train_step(config, mesh, steps_per_epoch=2, total_steps=2)
    state, metrics = step(state, put_batch({"poses_2d": clips, "poses_3d": clips}, mesh))
    assert metrics["skipped"] == 0
    assert np.abs(np.asarray(state.params["embed"]["kernel"])[-1] - before).max() > 0


def test_a_run_starts_from_a_model_that_does_not_take_it(config, clips, tmp_path):
    given = random_variables(CERTAIN)
    save_model(tmp_path / "model", CERTAIN, given["params"], skeleton=H36M17)
    train = dataclasses.replace(config.train, init_from=str(tmp_path / "model"))
    config = dataclasses.replace(config, train=train)
    state = start_from(make_state(config, make_mesh(config.mesh, jax.devices()[:1])), config)
    started = make_predict(config.model, {"params": state.params})
    expected = make_predict(CERTAIN, given)(clips[..., :2])
    np.testing.assert_allclose(started(clips), expected, atol=1e-5)


def test_evaluation_hands_over_what_the_source_says(config):
    test = data.build(config.data, "test")
    seen = []

    def keep(poses_2d):
        seen.append(poses_2d)
        return np.zeros((*poses_2d.shape[:-1], 3))

    evaluate(keep, test, batch_size=4, flip=False, confidence=True)
    expected = np.stack([test[i]["poses_2d"] for i in range(4)])
    np.testing.assert_array_equal(seen[0], expected)
    assert expected.shape[-1] == 3 and 0 < expected[..., 2].min() < expected[..., 2].max() <= 1
    evaluate(keep, test, batch_size=4, flip=False)
    np.testing.assert_array_equal(seen[-1], expected[..., :2])


def test_prediction_hands_over_the_detectors_confidence_and_doubts_what_it_missed(tmp_path):
    poses = walking(WINDOW)
    keypoints = np.concatenate([poses, np.full((*poses.shape[:2], 1), 0.5)], axis=-1)
    keypoints[3, 6] = 0  # Not found.
    keypoints[5, 2, 2] = 1.7  # Some detectors' scores are not bounded.
    np.save(tmp_path / "k.npy", keypoints)
    seen = []

    def keep(poses_2d):
        seen.append(poses_2d)
        return fake_predict(poses_2d[..., :2])

    options = PredictOptions(
        str(tmp_path / "k.npy"),
        checkpoint="fake",
        out=str(tmp_path / "out"),
        image_size="640x480",
        flip=False,
        trajectory="none",
    )
    model = LoadedModel(keep, WINDOW, confidence=True)
    run(options, load=lambda _: model)
    expected = np.full((WINDOW, 17), 0.5)
    expected[3, 6], expected[5, 2] = LEAST_CONFIDENCE, 1
    np.testing.assert_allclose(seen[0][0, ..., 2], expected, atol=1e-6)


def test_an_exported_program_takes_it():
    exported = export_model(CONFIDENT, random_variables(CONFIDENT), batch_size=2)
    assert exported.in_avals[0].shape == (2, FRAMES, 17, 3)
