"""Cameras, targets, and the imitated detector."""

import numpy as np
import pytest

from posemamba_jax.data.motion.cameras import (
    Camera,
    CameraConfig,
    DetectorConfig,
    detect,
    observe,
    place_camera,
    project,
    to_camera,
)

PERFECT = DetectorConfig(sigma=0, outlier_rate=0, swap_rate=0)


@pytest.fixture
def person():
    """A cloud of joints the size of a person that crosses a room (frames, 17, 3)."""
    rng = np.random.default_rng(5)
    shape = rng.uniform([-400, 0, -400], [400, 1700, 400], (17, 3))
    return shape + np.linspace(-2500, 2500, 60)[:, None, None] * np.array([1.0, 0, 0.4])


def test_projection_on_paper():
    """A camera at (0, 1000, 5000) that looks along -z: world x is right, world y is up."""
    rotation = np.array([[1.0, 0, 0], [0, -1, 0], [0, 0, -1]])
    camera = Camera(rotation, np.array([0.0, 1000, 5000]), 1000.0, 1000, 800)
    local = to_camera(camera, np.array([[0.0, 1000, 0], [500, 1500, 1000]]))
    np.testing.assert_allclose(local, [[0, 0, 5000], [500, -500, 4000]])
    # 500 mm at 4 m is 125 pixels, a quarter of half the image's width; up is negative.
    np.testing.assert_allclose(project(camera, local), [[0, 0], [0.25, -0.25]])


@pytest.mark.parametrize("seed", range(20))
def test_camera_is_upright_and_sees_everything(person, seed):
    config = CameraConfig(width=1000, height=600, distance=(1.0, 1.5))
    camera = place_camera(np.random.default_rng(seed), person, config)
    np.testing.assert_allclose(camera.rotation @ camera.rotation.T, np.eye(3), atol=1e-12)
    assert np.linalg.det(camera.rotation) == pytest.approx(1)
    up = camera.rotation @ [0, 1, 0]
    assert up[1] < -0.8 and abs(up[0]) < 1e-12
    local = to_camera(camera, person)
    assert local[..., 2].min() >= 999
    pixels = project(camera, local)
    assert np.abs(pixels[..., 0]).max() < 1 and np.abs(pixels[..., 1]).max() < 600 / 1000


def test_cameras_differ_and_stand_in_range():
    person = np.random.default_rng(0).uniform([-300, 0, -300], [300, 1700, 300], (9, 17, 3))
    middle = (person.reshape(-1, 3).min(0) + person.reshape(-1, 3).max(0)) / 2
    places = []
    for seed in range(50):
        camera = place_camera(np.random.default_rng(seed), person, CameraConfig())
        places.append(camera.position)
        assert 3500 < np.linalg.norm(camera.position - middle) < 6500
        assert 1100 <= camera.focal <= 1200
    azimuth = np.arctan2(*np.array(places)[:, [0, 2]].T)
    assert len(np.unique(np.floor(azimuth / (np.pi / 4)))) == 8


def test_targets_scale_back_to_millimetres(person):
    camera = place_camera(np.random.default_rng(1), person, CameraConfig())
    seen = observe(
        camera, person, input_2d="ground_truth", detector=PERFECT, rng=np.random.default_rng(0)
    )
    assert all(array.dtype == np.float32 for array in seen.values())
    assert seen["poses_2d"].shape == seen["poses_3d"].shape == (60, 17, 3)
    root = seen["poses_3d"][:, :1]
    back = (seen["poses_3d"] - root) * seen["mm_per_unit"][:, None, None]
    np.testing.assert_allclose(back, seen["poses_3d_mm"], atol=2e-3)
    # Distances are those of the world, and the root is where it is seen.
    spans = np.linalg.norm(person - person[:, :1], axis=-1)
    np.testing.assert_allclose(np.linalg.norm(seen["poses_3d_mm"], axis=-1), spans, rtol=1e-4)
    np.testing.assert_allclose(root[:, 0, :2], seen["poses_2d"][:, 0, :2], atol=1e-6)
    assert (seen["poses_3d"][:, 0, 2] == 0).all() and (seen["poses_2d"][..., 2] == 1).all()
    # Perspective: near the root's depth the input is the target's x, y.
    near = np.abs(seen["poses_3d_mm"][..., 2]) < 50
    np.testing.assert_allclose(
        seen["poses_2d"][near][:, :2], seen["poses_3d"][near][:, :2], atol=0.02
    )


def test_unknown_input_is_refused(person):
    with pytest.raises(ValueError, match="'detected' or 'ground_truth', got 'guessed'"):
        camera = place_camera(np.random.default_rng(1), person, CameraConfig())
        observe(camera, person, input_2d="guessed", detector=PERFECT, rng=np.random.default_rng(0))


@pytest.fixture
def still():
    pose = np.random.default_rng(2).uniform(-0.4, 0.4, (17, 2))
    return np.broadcast_to(pose, (4000, 17, 2)).copy()


def _extent(poses):
    return (poses[0].max(axis=0) - poses[0].min(axis=0)).max()


def test_detector_without_errors_is_exact(still):
    found = detect(still, PERFECT, np.random.default_rng(0))
    np.testing.assert_array_equal(found[..., :2], still)
    assert ((found[..., 2] > 0.75) & (found[..., 2] <= 1)).all()


def test_detector_error_has_the_size_that_was_asked_for(still):
    config = DetectorConfig(sigma=0.02, outlier_rate=0, swap_rate=0)
    error = detect(still, config, np.random.default_rng(0))[..., :2] - still
    assert error.std() == pytest.approx(0.02 * _extent(still), rel=0.1)
    assert abs(error.mean()) < 0.001
    # Errors drift: neighbouring frames are alike, distant ones are not.
    ankle = error[:, 3, 0]
    assert np.corrcoef(ankle[1:], ankle[:-1])[0, 1] > 0.3
    assert abs(np.corrcoef(ankle[20:], ankle[:-20])[0, 1]) < 0.15


def test_outliers_are_as_rare_as_asked_and_less_trusted(still):
    config = DetectorConfig(sigma=0.002, outlier_rate=0.02, outlier_sigma=0.2, swap_rate=0)
    found = detect(still, config, np.random.default_rng(0))
    wrong = np.linalg.norm(found[..., :2] - still, axis=-1) > 0.03 * _extent(still)
    assert 0.012 < wrong.mean() < 0.025
    assert found[wrong, 2].mean() < 0.6 * found[~wrong, 2].mean()


def test_swaps_exchange_the_two_sides(still):
    config = DetectorConfig(sigma=0, outlier_rate=0, swap_rate=0.05)
    found = detect(still, config, np.random.default_rng(0))[..., :2]
    changed = (found != still).any(axis=-1)
    legs = changed[:, 2]
    assert 0.02 < legs.mean() < 0.09
    np.testing.assert_array_equal(found[legs][:, [2, 3, 5, 6]], still[legs][:, [5, 6, 2, 3]])
    arms = changed[:, 12]
    np.testing.assert_array_equal(
        found[arms][:, [12, 13, 15, 16]], still[arms][:, [15, 16, 12, 13]]
    )
    assert not changed[:, [0, 1, 4, 7, 8, 9, 10, 11, 14]].any()


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: CameraConfig(width=0), "camera.width"),
        (lambda: CameraConfig(distance=(5, 4)), "camera.distance"),
        (lambda: CameraConfig(focal=(0, 4)), "camera.focal"),
        (lambda: DetectorConfig(sigma=-1), "detector.sigma"),
        (lambda: DetectorConfig(swap_rate=1.5), "detector.swap_rate"),
    ],
)
def test_bad_options_are_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()
