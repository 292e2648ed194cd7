"""The pictures show what they are given: found again in the pixels."""

import functools

import matplotlib.image
import numpy as np
import pytest

from posemamba_jax.data.sources.synthetic import SyntheticConfig, build
from posemamba_jax.pictures import plots
from posemamba_jax.pictures.plots import LEFT, RIGHT, plot_curves
from posemamba_jax.skeleton import H36M17

plot_poses = functools.partial(plots.plot_poses, skeleton=H36M17)


@pytest.fixture(scope="module")
def clip():
    source = build(
        SyntheticConfig(actions=("wave",)), clip_len=9, stride=9, split="test", input_2d="detected"
    )
    return source[0]


def _pixels(path, colour):
    """Returns where an image has about this colour (rows, columns)."""
    image = matplotlib.image.imread(path)[..., :3]
    wanted = np.array([int(colour[i : i + 2], 16) for i in (1, 3, 5)]) / 255
    return np.argwhere(np.abs(image - wanted).max(axis=-1) < 0.08), image.shape


def test_a_perfect_prediction_covers_the_true_pose(clip, tmp_path):
    truth = clip["poses_3d_mm"]
    grey = "#b0b7bf"
    paths = []
    for name, pred in (
        ("right", truth),
        ("wrong", truth + [[300.0, 0, 0]] * (np.arange(17) > 0)[:, None]),
    ):
        paths.append(plot_poses(pred, truth, clip["poses_2d"], tmp_path / "new" / f"{name}.png"))
        assert paths[-1].is_file()
    seen = [len(_pixels(path, grey)[0]) for path in paths]
    assert seen[1] > 1.1 * seen[0] > 0


def test_heads_are_up_and_sides_have_their_colours(tmp_path):
    """A person facing the camera: left is to the right of the image, and a raised arm is high."""
    rest = np.zeros((17, 3))
    rest[[4, 5, 6, 11, 12, 13], 0] = 200
    rest[[1, 2, 3, 14, 15, 16], 0] = -200
    rest[[2, 5], 1], rest[[3, 6], 1] = 400, 800
    rest[[7, 8, 9, 10], 1] = [-250, -500, -600, -700]
    rest[[11, 14], 1], rest[[12, 15], 1], rest[[13, 16], 1] = -500, -250, 0
    pose = np.repeat(rest[None], 3, axis=0)
    path = plot_poses(pose, pose, pose / 1000, tmp_path / "a.png", frames=[1], views=(0.0,))
    left, shape = _pixels(path, LEFT)
    right, _ = _pixels(path, RIGHT)
    body = [points[points[:, 0] < 0.9 * shape[0]] for points in (left, right)]  # not the legend
    assert body[0][:, 1].mean() > body[1][:, 1].mean() + 20
    upright = plot_poses(pose, pose, pose / 1000, tmp_path / "b.png", frames=[1], views=(0.0,))
    raised = pose.copy()
    raised[:, 13, 1] = -900
    up = plot_poses(raised, raised, raised / 1000, tmp_path / "c.png", frames=[1], views=(0.0,))
    # The drawn person grows upwards, so what was drawn before moves down or shrinks.
    tops = [_pixels(p, LEFT)[0][:, 0].min() for p in (upright, up)]
    assert tops[1] < tops[0]


def test_shapes_are_checked(clip, tmp_path):
    truth, poses_2d = clip["poses_3d_mm"], clip["poses_2d"]
    with pytest.raises(ValueError, match=r"pred and target must both be \(frames, 17, 3\)"):
        plot_poses(truth[:, :16], truth, poses_2d, tmp_path / "a.png")
    with pytest.raises(ValueError, match="poses_2d must be"):
        plot_poses(truth, truth, poses_2d[:5], tmp_path / "a.png")
    path = plot_poses(truth, truth, poses_2d[..., :2], tmp_path / "a.png", frames=[3])
    assert path.is_file()


def test_curves_of_whole_partial_and_empty_histories(tmp_path):
    history = [{"epoch": e, "loss": 1 / e, "mpjpe_mm": 100 / e} for e in range(1, 6)]
    partial = [{"epoch": 1, "loss": float("nan")}, {"epoch": 2, "loss": 0.5}, {"step": 3}]
    sizes = []
    for name, rows in (("all", history), ("some", partial), ("none", [])):
        path = plot_curves({"": rows}, tmp_path / f"{name}.png", baselines={"mean pose": 120.0})
        sizes.append(path.stat().st_size)
    assert sizes[0] > sizes[2]
    blue = "#1f77b4"
    assert len(_pixels(tmp_path / "all.png", blue)[0]) > 3 * len(
        _pixels(tmp_path / "none.png", blue)[0]
    )
