"""The evaluation protocol against the authors' figures and on poses whose errors are known."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import rich

from posemamba_jax import data
from posemamba_jax.data.clips import ArrayClips, DataError, Recording
from posemamba_jax.data.sources.h36m import H36MConfig
from posemamba_jax.evaluation import evaluate, evaluate_h36m
from posemamba_jax.skeleton import H36M17


@pytest.fixture(scope="module")
def h36m(data_dir, tmp_path_factory):
    cache = str(tmp_path_factory.mktemp("cache"))
    options = H36MConfig(str(data_dir / "h36m_tiny.pkl"), cache)
    return data.build(data.DataConfig(source="h36m", clip_len=27, h36m=options), "test")


@pytest.fixture(scope="module")
def golden(data_dir):
    return np.load(data_dir / "h36m_tiny_expected.npz")


@pytest.mark.parametrize("batch_size", [1, 4, 16])
@pytest.mark.parametrize("run", [evaluate, evaluate_h36m])
def test_figures_are_the_authors(h36m, golden, batch_size, run):
    weight, bias = golden["model_W"], golden["model_bias"]
    report = run(lambda poses: np.tanh(poses @ weight + bias), h36m, batch_size=batch_size)
    assert abs(report.mpjpe_mm - golden["mpjpe_mm"]) < 1e-3
    assert abs(report.p_mpjpe_mm - golden["p_mpjpe_mm"]) < 1e-3
    assert list(report.per_action) == golden["actions"].tolist()
    for key in ("mpjpe", "p_mpjpe"):
        ours = [figures[f"{key}_mm"] for figures in report.per_action.values()]
        np.testing.assert_allclose(ours, golden[f"{key}_per_action"], rtol=0, atol=1e-3)
    assert report.excluded == ("s_09_act_05_subact_02_ca_03",)
    assert report.clips == 8 and report.frames == 8 * 27


def make_source(recordings=(("a", "walk", 10), ("b", "sit", 9)), clip_len=3, stride=3, **options):
    """Makes poses that in millimetres are 200 times those in units, and differently placed."""
    rng = np.random.default_rng(0)
    rows = sum(length for *_, length in recordings)
    stops = np.cumsum([length for *_, length in recordings])
    poses = rng.normal(size=(rows, 17, 3)).astype(np.float32)
    return ArrayClips(
        "made-up",
        [
            Recording(name, action, int(stop) - length, int(stop))
            for (name, action, length), stop in zip(recordings, stops, strict=True)
        ],
        skeleton=H36M17,
        poses_2d=poses,
        poses_3d=poses,
        poses_3d_mm=200 * poses + np.float32(1000),
        mm_per_unit=np.full(rows, 200, np.float32),
        clip_len=clip_len,
        stride=stride,
        fps=50.0,
        **options,
    )


def make_oracle(source, change=lambda pose, frame_ids: pose):
    """Knows the right answer, up to a change, by the 2D poses."""
    answers = {}
    for i in range(len(source)):
        clip = source[i]
        pose = change((clip["poses_3d"] - clip["poses_3d"][:, :1]).copy(), clip["frame_ids"])
        answers[clip["poses_2d"][..., :2].tobytes()] = pose
        answers[H36M17.flip(clip["poses_2d"][..., :2]).tobytes()] = H36M17.flip(pose)
    return lambda poses_2d: np.stack([answers[clip.tobytes()] for clip in poses_2d])


def test_a_perfect_prediction_has_no_error():
    source = make_source()
    report = evaluate(make_oracle(source), source, batch_size=4)
    for key in ("mpjpe_mm", "p_mpjpe_mm", "n_mpjpe_mm", "mpjve_mm"):
        assert getattr(report, key) < 1e-3


def test_known_errors_give_known_figures():
    source = make_source()

    def shift(pose, _):
        pose[:, 1:, 1] += 0.05  # 10 mm in 16 of 17 joints
        return pose

    report = evaluate(make_oracle(source, shift), source)
    np.testing.assert_allclose(report.mpjpe_mm, 160 / 17, rtol=1e-5)
    assert report.mpjve_mm < 1e-3, "a constant offset is no error of velocity"
    doubled = evaluate(make_oracle(source, lambda pose, _: 2 * pose), source)
    assert doubled.n_mpjpe_mm < 1e-3 and doubled.p_mpjpe_mm < 1e-3 and doubled.mpjpe_mm > 100


def test_velocity_error_is_per_frame_and_only_between_neighbours():
    source = make_source(recordings=(("a", "walk", 12), ("b", "sit", 2)))

    def drift(pose, frame_ids):
        pose[:, 1:, 2] += 0.01 * frame_ids[:, None]  # 2 mm per frame
        return pose

    report = evaluate(make_oracle(source, drift), source)
    for action in ("walk", "sit"):  # the second recording's one clip repeats a frame
        np.testing.assert_allclose(report.per_action[action]["mpjve_mm"], 32 / 17, rtol=1e-3)
    alone = evaluate(make_oracle(one := make_source(clip_len=1, stride=1)), one)
    assert np.isnan(alone.mpjve_mm) and json.loads(alone.to_json())["mpjve_mm"] is None


def test_a_frame_in_several_clips_counts_once_with_its_mean_error():
    source = make_source(recordings=(("a", "walk", 4),), stride=1)  # frames 0 1 2 and 1 2 3

    def offset(pose, frame_ids):
        # 10 mm in the first clip and 30 mm in the second: frames have 10, 20, 20 and 30 mm.
        pose[:, 1:, 0] += 0.05 if frame_ids[0] == 0 else 0.15
        return pose

    report = evaluate(make_oracle(source, offset), source)
    np.testing.assert_allclose(report.mpjpe_mm, 20 * 16 / 17, rtol=1e-5)
    assert report.frames == 4 and report.clips == 2


def test_actions_weigh_the_same_whatever_their_length():
    source = make_source(recordings=(("a", "walk", 30), ("b", "sit", 3), ("c", "walk", 3)))

    def offset(pose, frame_ids):
        pose[:, 1:, 0] += 0.05 if 30 <= frame_ids[0] < 33 else 0.0
        return pose

    report = evaluate(make_oracle(source, offset), source)
    np.testing.assert_allclose(report.mpjpe_mm, 5 * 16 / 17, rtol=1e-4)


def test_the_root_is_put_to_zero_and_not_subtracted():
    source = make_source()

    def move_root(pose, _):
        pose[:, 0] += 7
        return pose

    assert evaluate(make_oracle(source, move_root), source).mpjpe_mm < 1e-3


def test_flipping_averages_both_predictions():
    source = make_source()

    def one_sided(poses_2d):
        pred = np.zeros((*poses_2d.shape[:-1], 3))
        pred[..., 0] = 0.3  # an error of x that the mirrored prediction cancels
        return pred

    zero = evaluate(lambda p: np.zeros((*p.shape[:-1], 3)), source)
    assert evaluate(one_sided, source, flip=True).mpjpe_mm == pytest.approx(zero.mpjpe_mm)
    assert evaluate(one_sided, source, flip=False).mpjpe_mm != pytest.approx(zero.mpjpe_mm)


def test_a_compiled_prediction_is_compiled_once():
    traces = []

    @jax.jit
    def predict(poses_2d):
        traces.append(poses_2d.shape)
        return jnp.zeros((*poses_2d.shape[:-1], 3))

    source = make_source()
    assert len(source) == 6
    steps = []
    evaluate(predict, source, batch_size=4, progress=lambda *step: steps.append(step))
    assert traces == [(4, 3, 17, 2)]
    assert steps == [(4, 6), (6, 6)]


def test_a_prediction_that_diverged_shows_as_no_figure():
    report = evaluate(lambda p: np.full((*p.shape[:-1], 3), np.nan), make_source())
    assert np.isnan(report.mpjpe_mm) and np.isnan(report.p_mpjpe_mm)
    assert json.loads(report.to_json())["per_action"]["sit"]["mpjpe_mm"] is None


def test_reports_can_be_saved_and_shown(tmp_path, capsys):
    report = evaluate(lambda p: np.zeros((*p.shape[:-1], 3)), make_source())
    report.save(tmp_path / "report.json")
    saved = json.loads((tmp_path / "report.json").read_text())
    assert saved == report.to_dict()
    assert saved["mpjpe_mm"] == report.mpjpe_mm and saved["per_action"].keys() == {"walk", "sit"}
    rich.print(report.table())
    shown = capsys.readouterr().out
    assert "walk" in shown and f"{report.mpjpe_mm:.2f}" in shown


def test_what_cannot_be_evaluated_is_named():
    zero = make_oracle(make_source())
    with pytest.raises(ValueError, match="batch_size is 0"):
        evaluate(zero, make_source(), batch_size=0)
    with pytest.raises(ValueError, match=r"predict returned the shape \(16, 3, 17, 2\)"):
        evaluate(lambda p: p, make_source())
    with pytest.raises(DataError, match="no clips to evaluate"):
        evaluate(zero, make_source(excluded_from_evaluation=frozenset("ab")))
    with pytest.raises(DataError, match="use evaluate"):
        evaluate_h36m(zero, make_source())
    without = make_source()
    del without.arrays["poses_3d_mm"]
    with pytest.raises(DataError, match="no targets in millimetres"):
        evaluate(zero, without)
