"""Clips of any length: exact where the model is local in time, seamless where it is not."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from moving_people import IMAGE_SIZE, WINDOW, fake_predict, walking

from posemamba_jax.predict.lift import (
    blend_weights,
    count_windows,
    lift,
    normalise,
    window_starts,
)
from posemamba_jax.skeleton import H36M17


def _clip(num_frames):
    return normalise(walking(num_frames), IMAGE_SIZE)


def _root_relative(poses):
    return poses - poses[:, :1]


@settings(max_examples=200, derandomize=True, deadline=None)
@given(st.integers(1, 300), st.integers(1, 40), st.data())
def test_windows_cover_every_frame_and_overlap_enough(num_frames, window, data):
    overlap = data.draw(st.integers(0, window - 1))
    starts = window_starts(num_frames, window, overlap)
    assert starts[0] == 0 and starts[-1] == max(num_frames - window, 0)
    assert (np.diff(starts) > 0).all() and (np.diff(starts) <= window - overlap).all()
    if len(starts) > 1:  # one window fewer would not do
        assert (num_frames - window) > (len(starts) - 2) * (window - overlap)


@pytest.mark.parametrize("overlap", [-1, WINDOW])
def test_impossible_overlap(overlap):
    with pytest.raises(ValueError, match=f"overlap is {overlap}"):
        window_starts(100, WINDOW, overlap)


def test_weights_fade_only_where_another_window_is():
    weights = blend_weights(9, 0, 3)
    assert (weights[:6] == 1).all() and (np.diff(weights[5:]) < 0).all() and weights[-1] > 0
    np.testing.assert_array_equal(blend_weights(9, 3, 0), weights[::-1])
    np.testing.assert_allclose(weights[6:] + blend_weights(9, 3, 2)[:3], 1)


@pytest.mark.parametrize("num_frames", [1, 5, 26, 27, 28, 29, 53, 54, 100, 243])
@pytest.mark.parametrize("overlap", [0, 9, 26])
def test_a_model_local_in_time_gives_the_same_whatever_the_windows(num_frames, overlap):
    clip = _clip(num_frames)
    lifted = lift(fake_predict, clip, WINDOW, overlap=overlap)
    assert lifted.shape == (num_frames, 17, 3) and lifted.dtype == np.float32
    np.testing.assert_allclose(lifted, _root_relative(fake_predict(clip)), atol=1e-6)


@pytest.mark.parametrize("num_frames", [10, 27, 61, 100])
def test_result_does_not_depend_on_the_batch(random_model, num_frames):
    clip = _clip(num_frames)
    one = lift(random_model, clip, WINDOW, batch_size=1)
    many = lift(random_model, clip, WINDOW, batch_size=3)
    np.testing.assert_allclose(many, one, atol=1e-6)


def test_short_clip_is_padded_with_its_edges(random_model):
    clip = _clip(10)
    padded = np.concatenate([clip[:1]] * 8 + [clip] + [clip[-1:]] * 9)
    assert len(padded) == WINDOW
    lifted = lift(random_model, clip, WINDOW, batch_size=1)
    whole = lift(random_model, padded, WINDOW, batch_size=1)
    np.testing.assert_allclose(lifted, whole[8:18], atol=1e-6)


def test_flip_averaging_makes_the_result_mirror_with_the_input(random_model):
    clip = _clip(40)
    lifted = lift(random_model, clip, WINDOW, batch_size=3)
    mirrored = lift(random_model, H36M17.flip(clip), WINDOW, batch_size=3)
    np.testing.assert_allclose(H36M17.flip(mirrored), lifted, atol=1e-5)
    plain = lift(random_model, clip, WINDOW, batch_size=3, flip=False)
    assert np.abs(plain - lifted).max() > 1e-3


def test_root_stays_in_the_origin(random_model):
    assert (lift(random_model, _clip(40), WINDOW, batch_size=3)[:, 0] == 0).all()


def test_progress_counts_every_window():
    done = []
    lift(fake_predict, _clip(200), WINDOW, batch_size=4, on_progress=done.append)
    assert sum(done) == count_windows(200, WINDOW)


def test_empty_or_broken_clips_and_models_are_refused():
    with pytest.raises(ValueError, match="finite keypoints"):
        lift(fake_predict, np.zeros((0, 17, 2)), WINDOW)
    with pytest.raises(ValueError, match="finite keypoints"):
        lift(fake_predict, np.full((30, 17, 2), np.nan), WINDOW)
    with pytest.raises(ValueError, match="not finite"):
        lift(lambda x: np.full((*x.shape[:-1], 3), np.nan), _clip(30), WINDOW)
