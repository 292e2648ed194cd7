"""Noise and masks on training input."""

import itertools

import numpy as np
import pytest
from test_pipeline import NumberedClips

from posemamba_jax.data.augment import AugmentConfig, add_noise, augment_2d, mask
from posemamba_jax.data.pipeline import train_batches


def make_poses(frames=400, seed=0):
    poses = np.random.default_rng(seed).uniform(-1, 1, (frames, 17, 3)).astype(np.float32)
    poses[..., 2] = 0.8
    return poses


def rng():
    return np.random.default_rng(1)


def test_noise_has_the_size_that_was_asked_for():
    poses = make_poses()
    config = AugmentConfig(
        noise=True, noise_std=0.02, outlier_share=0, jitter_std=0, key_frames=400
    )
    error = (add_noise(poses, config, rng()) - poses)[..., :2]
    assert error.std() == pytest.approx(0.02, rel=0.05) and abs(error.mean()) < 1e-3
    jitter = AugmentConfig(noise=True, noise_std=0, outlier_share=0, jitter_std=0.005)
    assert (add_noise(poses, jitter, rng()) - poses)[..., :2].std() == pytest.approx(
        0.005, rel=0.05
    )


def test_noise_drifts_between_key_frames():
    poses = make_poses()
    config = AugmentConfig(noise=True, outlier_share=0, jitter_std=0, key_frames=9)
    error = (add_noise(poses, config, rng()).astype(np.float64) - poses)[..., :2]
    turns = np.abs(np.diff(error, 2, axis=0)).max(axis=(1, 2)) > 1e-5
    assert 0 < turns.sum() <= 2 * 9, "straight lines between nine key frames"


def test_outliers_come_from_a_square_at_the_given_rate():
    config = AugmentConfig(
        noise=True, noise_std=0, outlier_share=0.3, outlier_range=0.1, jitter_std=0, key_frames=400
    )
    error = (add_noise(make_poses(), config, rng()) - make_poses())[..., :2]
    hit = np.abs(error).max(axis=-1) > 1e-6
    assert hit.mean() == pytest.approx(0.3, abs=0.03) and np.abs(error).max() <= 0.05 + 1e-6


def test_confidence_falls_with_the_error_and_unseen_joints_stay_unseen():
    poses = make_poses()
    poses[:, 4] = 0
    noisy = add_noise(poses, AugmentConfig(noise=True, confidence_scale=0.05), rng())
    assert (noisy[:, 4] == 0).all()
    size = np.linalg.norm((noisy - poses)[..., :2], axis=-1)[:, 5:]
    np.testing.assert_allclose(noisy[:, 5:, 2], 0.8 * 0.05 / (0.05 + size), rtol=1e-4)


def test_masks_hide_joints_and_frames_at_the_given_rates():
    poses = make_poses(2000)
    joints = mask(poses, AugmentConfig(mask_joints=0.05), rng())
    hidden = (joints == 0).all(-1)
    assert hidden.mean() == pytest.approx(0.05, abs=0.01)
    np.testing.assert_array_equal(joints[~hidden], poses[~hidden])
    frames = (mask(poses, AugmentConfig(mask_frames=0.1), rng()) == 0).all((1, 2))
    assert frames.mean() == pytest.approx(0.1, abs=0.03)


def test_detections_get_no_noise_and_input_is_not_changed():
    poses = make_poses()
    before = poses.copy()
    config = AugmentConfig(noise=True, mask_joints=0.5)
    exact = augment_2d(poses, config, rng(), exact=True)
    detected = augment_2d(poses, config, rng(), exact=False)
    np.testing.assert_array_equal(poses, before)
    seen = (detected != 0).any(-1)
    np.testing.assert_array_equal(detected[seen], poses[seen])
    assert (exact[(exact != 0).any(-1)] != poses[(exact != 0).any(-1)]).any()
    assert exact.dtype == np.float32 and not AugmentConfig().changes_anything


@pytest.mark.parametrize("frames", [1, 2, 9])
def test_clips_may_be_shorter_than_the_key_frames(frames):
    assert np.isfinite(add_noise(make_poses(frames), AugmentConfig(noise=True), rng())).all()


@pytest.mark.parametrize(
    "option",
    [
        {"mask_joints": 1.1},
        {"mask_frames": -0.1},
        {"outlier_share": 2},
        {"noise_std": -1},
        {"jitter_std": float("nan")},
        {"confidence_scale": 0},
        {"key_frames": 1},
    ],
)
def test_numbers_out_of_range_are_named(option):
    with pytest.raises(ValueError, match=f"data.augment.{next(iter(option))}"):
        AugmentConfig(**option)


def take(input_2d, augmentation, **options):
    source = NumberedClips(10)
    source.input_2d = input_2d
    stream = train_batches(
        source, batch_size=4, seed=3, num_threads=0, augmentation=augmentation, **options
    )
    return list(itertools.islice(stream, 5))


def test_a_stream_augments_its_input_alone_and_is_the_same_again():
    plain = take("ground_truth", None)
    config = AugmentConfig(noise=True, mask_joints=0.2)
    noisy, again = take("ground_truth", config), take("ground_truth", config)
    for a, b, c in zip(plain, noisy, again, strict=True):
        np.testing.assert_array_equal(b["poses_2d"], c["poses_2d"])
        np.testing.assert_array_equal(a["poses_3d"], b["poses_3d"])
        assert (a["poses_2d"] != b["poses_2d"]).any()
        assert len(np.unique(b["poses_2d"], axis=0)) == len(b["poses_2d"])
    for a, b in zip(plain, take("detected", AugmentConfig(noise=True)), strict=True):
        np.testing.assert_array_equal(a["poses_2d"], b["poses_2d"])
