"""People are kept apart, gaps are bridged up to a limit, and masks say what was seen."""

import dataclasses
import json

import numpy as np
import pytest
import writers
from hypothesis import given, settings
from hypothesis import strategies as st
from moving_people import IMAGE_SIZE, walking

from posemamba_jax.predict.keypoints import (
    KeypointError,
    Track,
    build_tracks,
    choose_tracks,
    fill_gaps,
    observed_masks,
    read_keypoints,
    with_image_size,
)
from posemamba_jax.predict.keypoints.tracks import find_segments


def _read(path):
    return with_image_size(read_keypoints(path), IMAGE_SIZE)


def _dense(keypoints, id=0):
    """Makes a track of (frames, 17, 3) rows in which NaN means no detection."""
    frames = np.flatnonzero(np.isfinite(keypoints).any((1, 2)))
    return Track(id, frames, keypoints[frames].astype(np.float32), len(keypoints))


def _seen(num_frames):
    return np.concatenate([walking(num_frames), np.ones((num_frames, 17, 1))], -1)


def test_people_without_identities_are_associated(tmp_path, people):
    # They pass each other in the middle with their boxes overlapping.
    with_ids = _read(writers.mmpose(tmp_path / "a.json", people))
    without = _read(writers.mmpose(tmp_path / "b.json", people, with_ids=False))
    named, _ = build_tracks(with_ids)
    found, how = build_tracks(without)
    assert "place" in how
    assert len(found) == len(named) == 2
    for a, b in zip(named, found, strict=True):
        np.testing.assert_array_equal(a.keypoints, b.keypoints)


def test_one_identity_for_everybody_is_no_identity(tmp_path, people):
    read = _read(writers.alphapose(tmp_path / "a.json", people))
    same = [dataclasses.replace(d, track=0) for d in read.detections]
    tracks, how = build_tracks(dataclasses.replace(read, detections=tuple(same)))
    assert len(tracks) == 2 and "several people" in how


def test_scores_are_no_identities(tmp_path, people):
    path = writers.alphapose(tmp_path / "a.json", people)
    entries = json.loads(path.read_text())
    for i, entry in enumerate(entries):
        entry["idx"] = [[1.0]] if i % 2 else 0.37
    path.write_text(json.dumps(entries))
    tracks, how = build_tracks(_read(path))
    assert len(tracks) == 2 and "place" in how


def test_a_person_who_is_away_too_long_is_somebody_new(tmp_path, people):
    read = _read(writers.mmpose(tmp_path / "a.json", people, with_ids=False))
    assert len(build_tracks(read, max_gap=5)[0]) == 2
    tracks, _ = build_tracks(read, max_gap=4)
    assert sorted(t.num_observed for t in tracks) == [10, 25, 40]


def test_order_of_people_within_a_frame_does_not_matter(tmp_path, people):
    read = _read(writers.mmpose(tmp_path / "a.json", people, with_ids=False))
    rng = np.random.default_rng(0)
    shuffled = [read.detections[i] for i in rng.permutation(len(read.detections))]
    again = dataclasses.replace(read, detections=tuple(shuffled))
    a = sorted((t.keypoints for t in build_tracks(read)[0]), key=lambda k: k[0, 0, 0])
    b = sorted((t.keypoints for t in build_tracks(again)[0]), key=lambda k: k[0, 0, 0])
    np.testing.assert_array_equal(a, b)


def test_choice_of_tracks(tmp_path, people):
    tracks, _ = build_tracks(_read(writers.alphapose(tmp_path / "a.json", people)))
    assert choose_tracks(tracks[::-1], "all") == tracks
    assert [t.id for t in choose_tracks(tracks, "longest")] == [1]
    assert [t.id for t in choose_tracks(tracks, "2")] == [2]
    with pytest.raises(KeypointError, match="one of 1, 2"):
        choose_tracks(tracks, "7")


def test_low_confidences_are_missing(tmp_path):
    read = _read(writers.alphapose(tmp_path / "a.json", {1: walking(4)}))
    with pytest.raises(KeypointError, match="above 0.95"):
        build_tracks(read, min_confidence=0.95)


def test_short_gaps_are_lines_and_long_ones_split():
    keypoints = _seen(60)
    truth = keypoints[..., :2].copy()
    keypoints[10:15] = np.nan
    keypoints[30:41] = np.nan
    poses, segments = fill_gaps(_dense(keypoints), max_gap=5)
    assert segments == [(0, 30), (41, 60)]
    np.testing.assert_allclose(poses[:10], truth[:10], atol=1e-4)
    share = np.linspace(0, 1, 7)[1:-1, None, None]
    between = truth[9] + share * (truth[15] - truth[9])
    np.testing.assert_allclose(poses[10:15], between, atol=1e-3)
    assert np.isnan(poses[30:41]).all() and np.isfinite(poses[41:]).all()
    joints, person = observed_masks(_dense(keypoints).keypoints)
    assert not person[10:15].any() and not joints[30:41].any() and person.sum() == 44


def test_frames_before_and_after_the_person_stay_empty():
    keypoints = _seen(20)
    keypoints[:4] = np.nan
    keypoints[17:] = np.nan
    poses, segments = fill_gaps(_dense(keypoints), max_gap=30)
    assert segments == [(4, 17)]
    assert len(poses) == 20 and np.isnan(poses[:4]).all() and np.isnan(poses[17:]).all()


def test_single_joints_are_filled_and_marked():
    keypoints = _seen(20)
    keypoints[5:8, 13] = [np.nan, np.nan, 0]
    keypoints[15:, 13] = [np.nan, np.nan, 0]
    keypoints[:, 10] = [np.nan, np.nan, 0]  # the head is never seen: the nose stands in
    poses, _ = fill_gaps(_dense(keypoints), max_gap=2)
    line = keypoints[4, 13, :2] + 0.25 * (keypoints[8, 13, :2] - keypoints[4, 13, :2])
    np.testing.assert_allclose(poses[5, 13], line, atol=1e-3)
    np.testing.assert_allclose(poses[15:, 13], np.tile(keypoints[14, 13, :2], (5, 1)), atol=1e-3)
    np.testing.assert_array_equal(poses[:, 10], poses[:, 9])
    joints, person = observed_masks(_dense(keypoints).keypoints)
    assert person.all()
    assert joints.sum() == 20 * 17 - 20 - 3 - 5


def test_a_stray_joint_is_no_person():
    keypoints = _seen(9)
    keypoints[4, 5:] = [np.nan, np.nan, 0]
    keypoints[4, :5, :2] += 400
    poses, _ = fill_gaps(_dense(keypoints), max_gap=3)
    _, person = observed_masks(_dense(keypoints).keypoints)
    assert person.tolist() == [True] * 4 + [False] + [True] * 4
    assert np.abs(np.diff(poses, axis=0)).max() < 10


@settings(max_examples=200, derandomize=True, deadline=None)
@given(st.lists(st.booleans(), min_size=1, max_size=40), st.integers(0, 6))
def test_segments_bridge_exactly_the_short_gaps(observed, max_gap):
    observed = np.array(observed)
    segments = find_segments(observed, max_gap)
    covered = np.zeros(len(observed), bool)
    for start, stop in segments:
        assert observed[start] and observed[stop - 1]
        covered[start:stop] = True
        inside = "".join("#" if o else "." for o in observed[start:stop])
        assert max(map(len, inside.replace("#", " ").split()), default=0) <= max_gap
    assert covered[observed].all()
    for (_, stop), (start, _) in zip(segments, segments[1:], strict=False):
        assert start - stop > max_gap
