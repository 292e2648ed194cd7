"""Cutting recordings into clips."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from posemamba_jax.data.clips import ArrayClips, DataError, Recording, clip_offsets, runs
from posemamba_jax.skeleton import H36M17

lengths = st.integers(1, 200)


@given(lengths, lengths, lengths)
def test_windows_follow_each_other_and_only_the_end_is_left_over(length, clip_len, stride):
    clips = clip_offsets(length, clip_len, stride)
    assert clips.shape[1] == clip_len
    assert clips.min() >= 0 and clips.max() < length
    if length < clip_len:
        return
    assert (np.diff(clips, axis=1) == 1).all()
    assert (np.diff(clips[:, 0]) == stride).all() and clips[0, 0] == 0
    assert length - clips[-1, -1] - 1 < stride


@given(lengths, lengths, lengths)
def test_covering_the_end_leaves_out_no_frame_where_strides_leave_no_gaps(length, clip_len, stride):
    clips = clip_offsets(length, clip_len, stride, cover_end=True)
    assert clips[-1, -1] == length - 1 or length < clip_len
    if stride <= clip_len:
        assert set(clips.ravel()) == set(range(length))


@given(st.integers(1, 100), st.integers(1, 100))
def test_a_short_recording_becomes_one_clip_of_all_its_frames_in_even_shares(length, longer):
    clips = clip_offsets(length, length + longer, 81)
    assert clips.shape == (1, length + longer)
    assert (np.diff(clips[0]) >= 0).all()
    counts = np.bincount(clips[0], minlength=length)
    assert counts.min() >= 1 and counts.max() - counts.min() <= 1


@pytest.mark.parametrize("numbers", [(0, 1, 1), (1, 0, 1), (1, 1, 0)])
def test_lengths_must_be_positive(numbers):
    with pytest.raises(ValueError, match="at least 1"):
        clip_offsets(*numbers)


@given(st.lists(st.sampled_from("abc")))
def test_runs_are_the_longest_stretches_of_equal_values(values):
    found = runs(values)
    assert [v for a, b in found for v in values[a:b]] == values
    assert all(len(set(values[a:b])) == 1 for a, b in found)
    assert all(values[a] != values[a - 1] for a, _ in found if a)


def make_clips(**changes) -> ArrayClips:
    rng = np.random.default_rng(0)
    options = {
        "name": "made-up",
        "recordings": [Recording("a", "walk", 0, 10), Recording("b", "sit", 10, 13)],
        "skeleton": H36M17,
        "poses_2d": rng.normal(size=(13, 17, 3)).astype(np.float32),
        "poses_3d": rng.normal(size=(13, 17, 3)).astype(np.float32),
        "poses_3d_mm": rng.normal(size=(13, 17, 3)).astype(np.float32),
        "mm_per_unit": np.ones(13, np.float32),
        "clip_len": 4,
        "stride": 3,
        "fps": 50.0,
    }
    return ArrayClips(**{**options, **changes})


def test_clips_hold_the_rows_of_their_index_and_stay_inside_a_recording():
    clips = make_clips()
    assert clips.index.tolist() == [[0, 1, 2, 3], [3, 4, 5, 6], [6, 7, 8, 9], [10, 10, 11, 12]]
    assert len(clips) == 4 and clips.num_joints == 17
    last = clips[3]
    assert (last["subject_source"], last["action"]) == ("b", "sit")
    assert last["frame_ids"].dtype == np.int64
    for key, array in clips.arrays.items():
        assert last[key].dtype == np.float32
        np.testing.assert_array_equal(last[key], array[[10, 10, 11, 12]])


def test_iteration_over_the_clips_ends():
    assert len(list(make_clips())) == 4


def test_a_clip_can_be_changed_without_changing_its_source():
    clips = make_clips()
    before = clips[0]["poses_2d"].copy()
    clip = clips[0]
    clip["poses_2d"][:] = 7
    clip["frame_ids"][:] = 7
    np.testing.assert_array_equal(clips[0]["poses_2d"], before)
    assert clips.index[0].tolist() == [0, 1, 2, 3]


def test_ground_truth_2d_is_the_target_without_depth():
    clips = make_clips(poses_2d=None)
    clip = clips[1]
    np.testing.assert_array_equal(clip["poses_2d"][..., :2], clip["poses_3d"][..., :2])
    assert (clip["poses_2d"][..., 2] == 1).all()
    assert not (clip["poses_3d"][..., 2] == 1).any()


def test_a_source_without_a_scale_has_no_millimetres():
    clip = make_clips(poses_3d_mm=None, mm_per_unit=None)[0]
    assert "poses_3d_mm" not in clip and "mm_per_unit" not in clip


@pytest.mark.parametrize("key", ["poses_2d", "poses_3d", "poses_3d_mm", "mm_per_unit"])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_value_that_is_not_finite_is_found(key, value):
    array = make_clips().arrays[key].copy()
    array[11] = value
    with pytest.raises(DataError, match=rf"{key} is {value} at index \(11,.*frame 1 of b"):
        make_clips(**{key: array})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"poses_2d": np.zeros((13, 17, 2))}, r"poses_2d has shape \(13, 17, 2\)"),
        ({"mm_per_unit": np.ones(12)}, r"mm_per_unit has shape \(12,\)"),
        ({"mm_per_unit": None}, "come together"),
        ({"recordings": []}, "no recordings"),
        ({"recordings": [Recording("a", "walk", 5, 14)]}, "'a' spans rows 5..13"),
        ({"recordings": [Recording("a", "walk", 5, 5)]}, "'a' spans"),
    ],
)
def test_parts_that_do_not_fit_each_other_are_named(changes, message):
    with pytest.raises(DataError, match=message):
        make_clips(**changes)
