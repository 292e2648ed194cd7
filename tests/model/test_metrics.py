"""Metrics against definitions worked out by hand or by brute force."""

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from posemamba_jax import metrics

RNG = np.random.default_rng(0)
TARGET = RNG.normal(size=(3, 4, 17, 3)) * 300


def similar(poses, *, mirror=False):
    """Turns, scales and moves each frame at random; mirrors it first where asked."""
    frames = poses.reshape(-1, *poses.shape[-2:]) * ([-1, 1, 1] if mirror else 1)
    turns = Rotation.random(len(frames), rng=np.random.default_rng(1)).as_matrix()
    scales = RNG.uniform(0.3, 3, (len(frames), 1, 1))
    moved = scales * frames @ turns + RNG.normal(size=(len(frames), 1, 3)) * 1000
    return moved.reshape(poses.shape)


def test_mpjpe_by_hand():
    pred = TARGET + np.array([3.0, 0.0, 4.0])
    assert metrics.mpjpe(pred, TARGET) == pytest.approx(5)
    pred = TARGET.copy()
    pred[:, :, 0] += [0, 17.0, 0]
    assert metrics.mpjpe(pred, TARGET) == pytest.approx(1)
    assert metrics.mpjpe_per_frame(pred, TARGET).shape == (3, 4)


def test_p_mpjpe_undoes_a_similarity_but_no_reflection():
    assert metrics.mpjpe(similar(TARGET), TARGET) > 100
    assert metrics.p_mpjpe(similar(TARGET), TARGET) < 1e-9
    assert metrics.p_mpjpe(similar(TARGET, mirror=True), TARGET) > 10


def test_procrustes_is_the_least_squares_optimum():
    pred = TARGET[0, :1] + RNG.normal(size=(1, 17, 3)) * 100
    target = TARGET[0, :1]
    best = np.sum((metrics.procrustes_align(pred, target) - target) ** 2)
    turned = metrics.procrustes_align(pred, target)
    centre = turned.mean(axis=-2, keepdims=True)
    for _ in range(200):
        turn = Rotation.from_rotvec(RNG.normal(size=3) * 0.02).as_matrix()
        other = (turned - centre) @ turn * RNG.uniform(0.98, 1.02) + centre + RNG.normal(size=3)
        assert np.sum((other - target) ** 2) >= best


@pytest.mark.parametrize("kind", ["one point", "a line", "a plane", "zeros"])
def test_p_mpjpe_of_degenerate_frames(kind):
    pred = TARGET[0].copy()
    if kind == "one point":
        pred[:] = 5.0
    elif kind == "a line":
        pred[..., 1:] = 0
    elif kind == "a plane":
        pred[..., 2] = 0
    else:
        pred[:] = 0
    target_spread = metrics.mpjpe(TARGET[0].mean(axis=1, keepdims=True) + 0 * pred, TARGET[0])
    for a, b in ((pred, TARGET[0]), (TARGET[0], pred), (pred, pred)):
        assert np.isfinite(metrics.p_mpjpe(a, b)) and np.isfinite(metrics.n_mpjpe(a, b))
    assert metrics.p_mpjpe(pred, TARGET[0]) <= target_spread * 1.1
    assert metrics.p_mpjpe(pred, pred) < 1e-9


def test_bad_frame_gives_nan_and_leaves_the_others():
    pred = similar(TARGET)
    pred[1, 2, 5, 0] = np.nan
    per_frame = metrics.p_mpjpe_per_frame(pred, TARGET)
    assert np.isnan(per_frame[1, 2]) and np.sum(np.isnan(per_frame)) == 1
    assert np.isnan(metrics.pck(pred, TARGET)) and np.isnan(metrics.auc(pred, TARGET))


def test_n_mpjpe_undoes_scale_only():
    scales = RNG.uniform(0.5, 2, (3, 4, 1, 1))
    assert metrics.n_mpjpe(TARGET * scales, TARGET) < 1e-9
    assert metrics.n_mpjpe(TARGET + 100, TARGET) > 10


def test_mpjve_by_hand():
    drift = np.arange(4.0)[:, None, None] * np.array([0.0, 2.0, 0.0])
    assert metrics.mpjve(TARGET + drift + 50, TARGET) == pytest.approx(2)
    assert np.isnan(metrics.mpjve(TARGET[:, :1], TARGET[:, :1]))
    with pytest.raises(ValueError, match="frames"):
        metrics.mpjve(TARGET[0, 0], TARGET[0, 0])


def test_pck_and_auc_by_hand():
    pred = TARGET.copy()
    pred[..., :4, 0] += 200
    pred[..., 4:8, 0] += 72
    assert metrics.pck(pred, TARGET) == pytest.approx(13 / 17)
    assert metrics.pck(pred, TARGET, threshold=50) == pytest.approx(9 / 17)
    # Joints at 72 are closer than 75, 80, ..., 150: 16 of 31; exact ones than all but 0.
    assert metrics.auc(pred, TARGET) == pytest.approx((4 * 16 + 9 * 30) / 31 / 17)
    assert metrics.auc(pred, TARGET, thresholds=[100]) == pytest.approx(13 / 17)


def test_shapes_must_agree():
    with pytest.raises(ValueError, match="expected the same"):
        metrics.mpjpe(TARGET, TARGET[..., :16, :])
