"""Evaluation pictures, from numbers that are known."""

import functools
import json

import jax
import numpy as np
import pytest
from PIL import Image

from posemamba_jax.errors import UserError
from posemamba_jax.evaluation import evaluate
from posemamba_jax.model import PoseMamba, PoseMambaConfig
from posemamba_jax.pictures import report
from posemamba_jax.skeleton import H36M17
from posemamba_jax.training.checkpoint import save_model

FRAMES = 6


class Clips:
    """Four clips whose poses are all zero: clip i's error is what is predicted for it."""

    name, clip_len, skeleton, fps = "zeros", FRAMES, H36M17, 25.0

    def __len__(self):
        return 4

    def __getitem__(self, i):
        poses_2d = np.zeros((FRAMES, 17, 3), np.float32)
        poses_2d[..., :2] = np.arange(17)[:, None] / 17
        poses_2d[..., 0] += i  # the root's x tells `predict` which clip it sees
        return {
            "poses_2d": poses_2d,
            "poses_3d_mm": np.zeros((FRAMES, 17, 3), np.float32),
            "mm_per_unit": np.full(FRAMES, 10, np.float32),
            "frame_ids": np.arange(i * FRAMES, (i + 1) * FRAMES),
            "subject_source": f"rec_{i}",
            "action": "walk" if i < 2 else "$sit",
        }


# Error of clip i at frame f, joint j: (i + 1) * (f + 1) mm at joints other than the root and 3.
def predict(poses_2d):
    pred = np.zeros((*poses_2d.shape[:-1], 3))
    clip = poses_2d[:, :, :1, 0] + 1
    pred[..., 2] = clip * (np.arange(FRAMES)[:, None] + 1) / 10
    pred[:, :, 3] = 0
    return pred


@pytest.fixture(scope="module")
def errors():
    return report.collect_errors(predict, Clips(), batch_size=3, flip=False)


def test_errors_are_kept_for_every_joint_and_frame(errors):
    assert [clip.index for clip in errors.clips] == [0, 1, 2, 3]
    for clip in errors.clips:
        expected = (clip.index + 1) * np.arange(1, FRAMES + 1)
        np.testing.assert_allclose(clip.distances[:, 5], expected, rtol=1e-5)
        np.testing.assert_allclose(clip.distances[:, [0, 3]], 0)
    per_joint = errors.per_joint()
    np.testing.assert_allclose(per_joint[5], 2.5 * 3.5, rtol=1e-5)
    assert per_joint[0] == per_joint[3] == 0
    np.testing.assert_allclose(
        errors.over_time([50])[0], 2.5 * np.arange(1, FRAMES + 1) * 15 / 17, rtol=1e-5
    )
    assert [clip.name for clip in errors.ranked()] == ["rec_0", "rec_1", "rec_2", "rec_3"]


def test_the_figures_are_those_of_the_evaluation(errors):
    plain = evaluate(predict, Clips(), batch_size=3, flip=False)
    assert errors.report == plain
    mean = np.mean([clip.mean for clip in errors.clips])
    assert errors.report.mpjpe_mm == pytest.approx(mean, rel=1e-6)


def test_clips_shorter_than_others_do_not_drag_the_end_down(errors):
    short = report.ClipErrors(4, "", "", np.zeros((2, 17, 3)), np.zeros((2, 17)))
    mixed = report.Errors(errors.report, [*errors.clips, short])
    assert mixed.over_time([0])[0, -1] > 0 and mixed.over_time([0])[0, 0] == 0


def test_pictures_of_one_and_of_several_runs(errors, tmp_path):
    for runs in ({"run": errors}, {"_a$": errors, "b": errors}):
        per_joint = functools.partial(report.plot_per_joint, skeleton=H36M17)
        for i, plot in enumerate((per_joint, report.plot_per_action, report.plot_over_time)):
            path = plot(runs, tmp_path / "new" / f"{i}_{len(runs)}.png")
            pixels = np.asarray(Image.open(path).convert("RGB"))
            assert (pixels < 200).any(axis=-1).mean() > 0.01


def test_best_and_worst_clips_are_drawn(errors, tmp_path):
    paths = report.draw_clips(Clips(), errors, tmp_path, count=1, moving="html")
    assert [path.name for path in paths] == [
        "best_1.png",
        "best_1.html",
        "worst_1.png",
        "worst_1.html",
    ]
    assert "rec_3 $sit: 12.4 mm" in (tmp_path / "worst_1.html").read_text(encoding="utf-8")
    every = report.draw_clips(Clips(), errors, tmp_path / "all", count=99)
    assert len(every) == 4, "no clip is both best and worst"
    assert report.draw_clips(Clips(), errors, tmp_path, count=0) == []


def write_run(folder, rows):
    folder.mkdir(parents=True)
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(folder)


def test_curves_of_runs_without_checkpoints(tmp_path, capsys):
    rows = [{"step": i, "epoch": i / 2, "loss": 1 / (i + 1)} for i in range(5)]
    rows.append({"step": 5, "epoch": 2.5, "mpjpe_mm": 60.0})
    runs = [write_run(tmp_path / name / "run", rows[: 6 - i]) for i, name in enumerate("ab")]
    out = tmp_path / "out"
    assert report.main([*runs, "--out", str(out), "--curves_only"]) == 0
    assert [path.name for path in out.iterdir()] == ["curves.png"]
    assert str(out / "curves.png") in capsys.readouterr().out


def test_runs_are_told_apart_by_the_end_of_their_paths(tmp_path):
    assert report.name_runs([tmp_path / "a" / "run", tmp_path / "b" / "run"]) == ["a/run", "b/run"]
    assert report.name_runs([tmp_path / "x", tmp_path / "y"]) == ["x", "y"]
    with pytest.raises(UserError, match="given twice"):
        report.name_runs([tmp_path, tmp_path])


def test_what_cannot_be_used_is_named(tmp_path):
    out = ["--out", str(tmp_path / "out")]
    with pytest.raises(UserError, match="nowhere: no such folder"):
        report.main([str(tmp_path / "nowhere"), *out])
    with pytest.raises(UserError, match=r"metrics\.jsonl"):
        report.main([str(tmp_path), *out, "--curves_only"])
    with pytest.raises(UserError, match="holds no checkpoint"):
        report.main([str(tmp_path), *out])
    assert not (tmp_path / "out").exists()


def test_the_command_evaluates_a_model(tmp_path, capsys):
    config = PoseMambaConfig(dim=8, depth=1, num_frames=9, state_size=2)
    shapes = jax.eval_shape(PoseMamba(config).init, jax.random.key(0), np.zeros((1, 9, 17, 2)))
    variables = jax.tree.map(lambda leaf: np.full(leaf.shape, 0.1, leaf.dtype), shapes)
    run = save_model(tmp_path / "model", config, variables)
    out = tmp_path / "out"
    keys = ["--data.source", "synthetic", "--data.synthetic.num_test_clips", "3"]
    keys += ["--data.clip_len", "9", "--eval.batch_size", "8", "--train.compilation_cache", "null"]
    assert report.main([str(run), "--out", str(out), "--clips", "1", *keys]) == 0
    made = sorted(str(path.relative_to(out)) for path in out.rglob("*.png"))
    assert made == [
        "clips/best_1.png",
        "clips/worst_1.png",
        "over_time.png",
        "per_action.png",
        "per_joint.png",
    ]
    assert "synthetic" in capsys.readouterr().out
