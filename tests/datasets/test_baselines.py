"""The two plain baselines."""

import json

import numpy as np
import pytest

from posemamba_jax.data.clips import ArrayClips, DataError, Recording
from posemamba_jax.evaluation import baselines
from posemamba_jax.skeleton import H36M17


def make_source(depth_weights, seed, rows=200):
    """Makes poses whose depth is a linear function of the root-relative x, y, far from the
    root's.
    """
    rng = np.random.default_rng(seed)
    poses = rng.normal(size=(rows, 17, 3))
    poses[..., 2] = 0
    relative = poses - poses[:, :1]
    poses[..., 2] = np.einsum("rja,jak->rk", relative[..., :2], depth_weights) + 0.3
    poses[:, 0, 2] = 0
    poses[..., 2] += 5
    return ArrayClips(
        "linear",
        [Recording("a", "walk", 0, rows)],
        skeleton=H36M17,
        poses_2d=poses.astype(np.float32),
        poses_3d=poses.astype(np.float32),
        poses_3d_mm=(100 * poses).astype(np.float32),
        mm_per_unit=np.full(rows, 100, np.float32),
        clip_len=10,
        stride=10,
        fps=50.0,
    )


@pytest.fixture(scope="module")
def sources():
    # Invariant under the horizontal flip, as depth is.
    weights = np.random.default_rng(0).normal(size=(17, 2, 17))
    weights[:, 0] = 0
    weights = weights + weights[H36M17.mirror][:, :, H36M17.mirror]
    return make_source(weights, 1), make_source(weights, 2)


def test_linear_regression_finds_a_linear_dependence_and_the_mean_pose_does_not(sources):
    reports = baselines.evaluate_baselines(*sources)
    assert reports["linear regression"].mpjpe_mm < 0.1
    assert reports["mean pose"].mpjpe_mm > 100


def test_the_mean_pose_is_the_mean_of_root_relative_training_poses(sources):
    train, _ = sources
    poses = train.arrays["poses_3d"]
    predict = baselines.fit(train)["mean pose"]
    pred = predict(np.zeros((2, 10, 17, 2)))
    assert pred.shape == (2, 10, 17, 3)
    np.testing.assert_allclose(pred[1, 3], (poses - poses[:, :1]).mean(0), atol=1e-5)


def test_joints_that_always_coincide_can_be_regressed_on():
    source = make_source(np.zeros((17, 2, 17)), 0)
    source.arrays["poses_2d"][:, 1] = source.arrays["poses_2d"][:, 2]
    assert np.isfinite(baselines.fit(source)["linear regression"](np.ones((1, 10, 17, 2)))).all()


def test_an_empty_source_is_named(sources):
    train, _ = sources

    class Empty:
        name, skeleton = "empty", H36M17

        def __len__(self):
            return 0

    with pytest.raises(DataError, match="empty"):
        baselines.fit(Empty())


def test_the_command_prints_tables_and_json(capsys):
    argv = "--data.source synthetic --data.clip_len 9 --data.synthetic.num_train_clips 24"
    assert baselines.main([*argv.split(), "--data.synthetic.num_test_clips", "12"]) == 0
    out, err = capsys.readouterr()
    reports = json.loads(out)
    assert reports.keys() == {"mean pose", "linear regression"}
    for name, report in reports.items():
        assert name in err and f"{report['mpjpe_mm']:.2f}" in err
