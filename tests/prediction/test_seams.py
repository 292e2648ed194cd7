"""No jumps where windows meet: accelerations at their borders are no larger than elsewhere.

The models here answer the same pose differently at every place of the window, as a temporal network
does: ridge regressions from a window of 2D poses to the window of 3D poses, fitted in closed form.
On real motion capture they are trained on one subject and tested on another, so what the test
shows is a trained model's disagreement between windows, though not PoseMamba's own.
"""

import numpy as np
from moving_people import IMAGE_SIZE, WINDOW, walking, watch_mocap

from posemamba_jax.predict.lift import lift, normalise, window_starts


def fit_ridge(poses_2d, poses_3d, weight):
    """Predicts windows of 3D poses, each frame from the whole window, linearly.

    Args:
      poses_2d, poses_3d: lists of clips (frames, 17, 2) and (frames, 17, 3).
      weight: of the penalty on the coefficients.
    """

    def windows(clips):
        view = [np.lib.stride_tricks.sliding_window_view(c, WINDOW, 0)[::3] for c in clips]
        view = np.moveaxis(np.concatenate(view), -1, 1)
        return view.reshape(len(view), -1).astype(np.float64)

    x, y = windows(poses_2d), windows(poses_3d)
    x_mean, y_mean = x.mean(0), y.mean(0)
    x, y = x - x_mean, y - y_mean
    solution = np.linalg.solve(x.T @ x + weight * np.eye(x.shape[1]), x.T @ y)

    def predict(batch):
        flat = batch.reshape(len(batch), -1) - x_mean
        return (flat @ solution + y_mean).reshape(len(batch), WINDOW, 17, 3).astype(np.float32)

    return predict


def _accelerations(poses):
    """Computes the largest joint acceleration at each inner frame, (frames - 2,)."""
    return np.linalg.norm(np.diff(poses, 2, axis=0), axis=-1).max(1)


def _near_borders(num_frames, overlap):
    """Tells which inner frames' acceleration spans a window's begin or end, (frames - 2,) bool."""
    starts = window_starts(num_frames, WINDOW, overlap)
    edges = np.concatenate([starts[1:], starts[:-1] + WINDOW]) - 0.5
    return (np.abs(np.arange(1, num_frames - 1)[:, None] - edges) < 1).any(1)


def seam_ratio(predict, clip, overlap):
    """Returns the largest acceleration near window borders over the largest elsewhere.

    The clip's own ends, where every model is at its worst, count as neither.
    """
    acceleration = _accelerations(lift(predict, clip, WINDOW, overlap=overlap, batch_size=3))
    border = _near_borders(len(clip), overlap)
    inside = np.ones(len(border), bool)
    inside[:4] = inside[-4:] = False
    return acceleration[border & inside].max() / acceleration[~border & inside].max()


def assert_no_seams(predict, clip):
    """Checks that blending leaves no seams, by a measure that sees them without it."""
    assert seam_ratio(predict, clip, WINDOW // 3) <= 1
    assert seam_ratio(predict, clip, 0) > 1.2


def test_real_motion_capture(mocap_dir):
    train = watch_mocap(mocap_dir, ("01/01_01.amc", "01/01_05.amc", "01/01_08.amc"), cameras=3)
    poses_2d, poses_3d = zip(*((c["poses_2d"], c["relative"]) for c in train), strict=True)
    predict = fit_ridge([p[..., :2] for p in poses_2d], poses_3d, weight=1.0)
    test = watch_mocap(mocap_dir, ("02/02_01.amc", "02/02_04.amc", "02/02_05.amc"), cameras=1)
    for clip in test:
        poses = clip["poses_2d"][..., :2]
        assert_no_seams(predict, poses)
        # The model knows something: it is better than a flat figure.
        error = np.abs(lift(predict, poses, WINDOW) - clip["relative"]).mean()
        flat = np.concatenate([poses - poses[:, :1], np.zeros_like(poses[..., :1])], -1)
        assert error < np.abs(flat - clip["relative"]).mean()


def test_made_up_motion():
    def turning(seed):
        # Depth follows from time, which the model sees only through the motion.
        pixels = walking(400, (200.0, 240.0), (0.2, 0.0), seed)
        clip = normalise(pixels, IMAGE_SIZE)
        angle = 0.05 * np.arange(400)[:, None] + seed
        x, y = clip[..., 0] - clip[:, :1, 0], clip[..., 1]
        seen = np.stack([x * np.cos(angle), y], -1)
        return seen, np.stack([x * np.cos(angle), y - y[:, :1], x * np.sin(angle)], -1)

    train = [turning(seed) for seed in range(6)]
    rng = np.random.default_rng(0)
    noisy = [x + 0.003 * rng.standard_normal(x.shape) for x, _ in train]
    predict = fit_ridge(noisy, [y for _, y in train], weight=0.01)
    assert_no_seams(predict, turning(9)[0].astype(np.float32))


def test_windows_that_disagree_by_a_constant():
    calls = np.random.default_rng(0)

    def predict(batch):
        offset = 0.02 * calls.standard_normal((len(batch), 1, 17, 3))
        return (np.pad(batch, ((0, 0), (0, 0), (0, 0), (0, 1))) + offset).astype(np.float32)

    assert_no_seams(predict, normalise(walking(300), IMAGE_SIZE))


def test_random_posemamba(random_model):
    """Random weights disagree with themselves far more than trained ones: the hardest case.

    It shows the blending at work on the real network, not how a trained one moves.
    """
    assert_no_seams(random_model, normalise(walking(300), IMAGE_SIZE))
