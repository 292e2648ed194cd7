"""The steps around the pose networks: anchors, regions, refinement, tracks, left and right."""

import numpy as np
import pytest
from PIL import Image

from posemamba_jax.predict.detect import detector, flips, landmarks, tracking
from posemamba_jax.predict.detect import regions as square


def raw_detections(image_size, people) -> list[np.ndarray]:
    """What the network would say of people (hips, rim, logit): one anchor each, box 40 wide."""
    fit, anchors = detector.Letterbox.of(image_size), detector.make_anchors()
    numbers = np.zeros((1, len(anchors), 12), np.float32)
    logits = np.full((1, len(anchors), 1), -9, np.float32)
    for hips, rim, logit in people:
        places = np.array([hips, rim]) * fit.scale + (fit.left, fit.top)
        free = np.flatnonzero(logits[0, :, 0] == -9)
        i = free[np.linalg.norm(anchors[free] * detector.SIDE - places[0], axis=1).argmin()]
        away = places - anchors[i] * detector.SIDE
        numbers[0, i, :2], numbers[0, i, 2:4] = away[0], 40
        numbers[0, i, 4:8] = away.ravel()
        logits[0, i] = logit
    return [numbers, logits]


@pytest.mark.parametrize("image_size", [(1920, 1080), (1080, 1920), (101, 67)])
def test_detections_come_back_in_pixels_and_duplicates_are_joined(image_size):
    assert detector.make_anchors().shape == (2254, 2)
    w, h = image_size
    one, other = np.array([0.3 * w, 0.5 * h]), np.array([0.8 * w, 0.5 * h])
    up = np.array([0, -0.2 * h])
    people = [(one, one + up, 3.0), (one, one + up, 2.0), (other, other + up, 1.0)]
    (found,) = detector.decode(raw_detections(image_size, people), image_size)
    assert len(found) == 2 and found[0].score > found[1].score
    for person, place in zip(found, (one, other), strict=True):
        # Letterboxes have whole pixels, so a small image is off by a part of one.
        np.testing.assert_allclose(person.hips, place, atol=0.01 * max(image_size))
        np.testing.assert_allclose(person.rim, place + up, atol=0.01 * max(image_size))
    assert detector.decode(raw_detections(image_size, []), image_size) == [[]]


def test_regions_turn_people_upright_and_points_return_to_the_image():
    y, x = np.mgrid[:400, :600]
    image = Image.fromarray(np.stack([x % 256, y % 256, 0 * x], -1).astype(np.uint8))
    hips, rim = np.array([320.0, 210.0]), np.array([260.0, 210.0])  # lying, head to the left
    region = square.from_points(hips, rim)
    assert region[2] == pytest.approx(2.5 * 60)
    cut = square.cut_out(image, region, 150)
    # A point of the crop shows the place that `to_image` says.
    for row, column in ((20, 30), (75, 75), (130, 90)):
        place = np.array([(column + 0.5) / 150, (row + 0.5) / 150])
        px, py = square.to_image(place[None], region)[0]
        assert cut[row, column, :2] == pytest.approx([(px - 0.5) % 256, (py - 0.5) % 256], abs=1.5)
    # The head is up in the crop, and large regions are averaged rather than sampled.
    np.testing.assert_allclose(
        square.to_image(np.array([[0.5, 0.1]]), region)[0], [260, 210], atol=1e-6
    )
    stripes = Image.fromarray(np.tile(np.array([0, 255], np.uint8), (512, 256))).convert("RGB")
    even = square.cut_out(stripes, np.array([256.0, 256, 512, 0]), 64)
    assert np.ptp(even[8:-8, 8:-8]) <= 2
    assert not square.cut_out(stripes, np.array([-900.0, 0, 512, 0]), 64).any()


def test_regions_between_two_frames_turn_the_short_way():
    regions = np.array([[0, 0, 100, 3.0], [10, 20, 400, -3.0]])
    middle = square.interpolate(np.array([0, 10]), regions, np.array([-3, 5, 12]))
    np.testing.assert_allclose(middle[1, :3], [5, 10, 200])
    assert abs(middle[1, 3]) == pytest.approx(np.pi)
    np.testing.assert_allclose(middle[0], regions[0])
    np.testing.assert_allclose(middle[2, :3], regions[1, :3])


def test_heat_maps_refine_only_where_they_are_sure():
    maps = np.full((1, 64, 64, 3), -12.0, np.float32)
    maps[0, 20:23, 30:33, 0] = 4.0  # a peak around cell (31, 21)
    maps[0, 20:23, 30:33, 1] = -1.0  # an unsure one
    points = np.array([[[30.2 / 64, 20.4 / 64], [0.3, 0.3], [1.4, 0.5]]])
    refined = landmarks.refine(points, maps)
    np.testing.assert_allclose(refined[0, 0] * 64, [31, 21], atol=0.01)
    np.testing.assert_array_equal(refined[0, 1:], points[0, 1:])


def sighting(frame, x, look, side=100.0, score=0.9):
    histogram = np.zeros(216, np.float32)
    histogram[look] = 1
    return tracking.Sighting(frame, np.array([x, 200.0, side, 0]), score, histogram)


def test_people_who_cross_keep_their_identity_and_ghosts_go():
    """Red walks right, blue walks left; they meet at frame 50, where blue is hidden for 0.8 s."""
    seen = []
    for frame in range(0, 101, 5):
        now = [sighting(frame, 100 + 4 * frame, look=1)]
        if not 40 <= frame <= 60:
            now.append(sighting(frame, 500 - 4 * frame, look=2, score=0.8))
        if frame == 15:
            now.append(sighting(frame, 900, look=3, side=300))
        seen.append(now)
    tracks = tracking.follow(seen, fps=25.0)
    chosen, ghosts = tracking.choose(tracks, 5, (1000, 400), least_frames=12)
    assert ghosts == 1 and len(chosen) == 2
    for track, look in zip(chosen, (1, 2), strict=True):
        assert {int(s.look.argmax()) for s in track.sightings} == {look}
    # The one most in view is the one seen longer; order is that of appearance.
    (most,), _ = tracking.choose(tracks, 1, (1000, 400), least_frames=12)
    assert most is chosen[0]


def test_short_clips_keep_their_only_person():
    tracks = tracking.follow([[sighting(0, 100, 1)]], fps=25.0)
    chosen, ghosts = tracking.choose(tracks, 1, (1000, 400), least_frames=12)
    assert len(chosen) == 1 and ghosts == 0


def walker(frames=90):
    """A person facing the camera who swings arms and legs, (frames, 33, 4)."""
    rng = np.random.default_rng(0)
    points = np.zeros((frames, 33, 4), np.float32)
    points[..., 3] = 1
    t = np.arange(frames)
    for i, (height, reach) in enumerate([(60, 40), (110, 60), (160, 70)]):
        for pair in ((11 + 2 * i, 12 + 2 * i), (23 + 2 * i, 24 + 2 * i)):
            for sign, joint in zip((1, -1), pair, strict=True):
                points[:, joint, 0] = 300 + sign * reach + 2 * t + 15 * np.sin(t / 9 + sign)
                points[:, joint, 1] = height + (200 if joint > 22 else 0) + 8 * np.cos(t / 9)
    points[:, 17:23, :2] = points[:, [15, 16] * 3, :2]
    points[:, 29:33, :2] = points[:, [27, 28] * 2, :2] + 5
    points[..., :2] += rng.normal(0, 1.5, points[..., :2].shape)
    return points


def exchange(points, frames, joints):
    """The same with left and right exchanged among joints (left, right, left, right, ...)."""
    other = points.copy()
    pairs = np.array(joints).reshape(-1, 2)
    for a, b in pairs:
        other[frames, a], other[frames, b] = points[frames, b], points[frames, a]
    return other


def test_exchanged_left_and_right_are_put_back():
    clean = walker()
    arms, legs = range(11, 23), range(23, 33)
    wrong = exchange(clean, slice(30, 52), [*arms, *legs])
    wrong = exchange(wrong, slice(60, 61), legs)
    done = flips.mend(wrong, longest_gap=10)
    np.testing.assert_array_equal(done.points, clean)
    assert not done.doubtful.any()
    np.testing.assert_array_equal(np.flatnonzero(done.changed), [*range(30, 52), 60])
    # Nothing is changed in a clean clip, nor where the person is away; constant change is doubted.
    clean[20:25] = np.nan
    same = flips.mend(clean, longest_gap=10)
    np.testing.assert_array_equal(same.points, clean)
    assert not same.changed.any() and not same.doubtful.any()
    restless = exchange(walker(), np.arange(90) % 3 == 0, legs)
    done = flips.mend(restless, longest_gap=10)
    assert done.doubtful.all() and not done.changed.any()
    np.testing.assert_array_equal(done.points, restless)
