"""Motion capture of which every training clip is drawn anew, and what it is drawn with."""

import dataclasses

import mocap_files
import numpy as np
import pytest

from posemamba_jax.config import from_dict, load_config, to_dict
from posemamba_jax.data import pipeline
from posemamba_jax.data.clips import DataError
from posemamba_jax.data.formats import motion_cache
from posemamba_jax.data.formats.jumps import find_jumps, split_at_jumps
from posemamba_jax.data.formats.recordings import MotionFiles, match_recordings
from posemamba_jax.data.motion.actions import perform
from posemamba_jax.data.motion.body import draw_body
from posemamba_jax.data.motion.keypoint_errors import (
    DEFINITIONS,
    KeypointConfig,
    imitate_detector,
    redefine,
)
from posemamba_jax.data.motion.limbs import (
    BodyConfig,
    draw_factors,
    rescale_limbs,
    sample_frames,
)
from posemamba_jax.data.motion.views import ViewConfig, draw_view
from posemamba_jax.data.sources.drawn_mocap import DrawConfig, DrawnClips, Motion, share_out
from posemamba_jax.data.sources.mocap import MocapConfig, build
from posemamba_jax.errors import ConfigError
from posemamba_jax.skeleton import H36M17

VARIED = DrawConfig(body=BodyConfig(stature=(0.85, 1.12), limbs=0.05, speed=(0.5, 1.33)))


@pytest.fixture(scope="module")
def walk():
    """(90, 17, 3) a person walking, millimetres, 30 frames per second."""
    rng = np.random.default_rng(3)
    return perform("walk", rng, draw_body(rng), np.arange(90) / 30).astype(np.float32)


def source(walk, *, split="train", options=VARIED, input_2d="detected", clip_len=9, more=()):
    motions = [Motion("a/walk", walk), Motion("b/part", walk[:40], 2.0), *more]
    return DrawnClips(
        motions, options, clip_len=clip_len, stride=9, fps=30, seed=0, split=split,
        input_2d=input_2d,
    )  # fmt: skip


def lengths(points):
    return np.stack([np.linalg.norm(points[:, c] - points[:, p], axis=-1) for p, c in H36M17.bones])


def test_a_clip_differs_from_epoch_to_epoch_and_a_resumed_run_sees_the_same(walk):
    clips = source(walk)
    stream = pipeline.train_batches(clips, batch_size=len(clips), seed=1, flip_probability=0)
    first = next(stream)
    state = stream.get_state()
    second = next(stream)
    stream.set_state(state)
    again = next(stream)
    for key in second:
        np.testing.assert_array_equal(second[key], again[key])
    # Not one clip of the first epoch comes again in the second, in whatever order.
    distance = np.abs(first["poses_2d"][:, None] - second["poses_2d"][None]).max(axis=(2, 3, 4))
    assert distance.min() > 1e-4
    assert np.isfinite(first["poses_2d"]).all() and np.isfinite(first["poses_3d"]).all()


def test_drawn_clips_hold_to_the_contract_and_test_clips_stay(walk):
    for split in ("train", "test"):
        clips, others = source(walk, split=split), source(walk, split=split)
        for i in range(len(clips)):
            clip = clips[i]
            scale = clip["mm_per_unit"][:, None, None]
            relative = (clip["poses_3d"] - clip["poses_3d"][:, :1]) * scale
            np.testing.assert_allclose(relative, clip["poses_3d_mm"], atol=0.05)
            np.testing.assert_array_equal(clip["poses_2d"], others[i]["poses_2d"])
    ids = np.concatenate([clips[i]["frame_ids"] for i in range(len(clips))])
    assert len(np.unique(ids)) == 90 + 45, "test windows cover all; windows differ in their cameras"
    exact = source(walk, split="test", input_2d="ground_truth")[0]
    # Perspective moves joints of other depths; the root itself projects to where it is.
    np.testing.assert_allclose(exact["poses_2d"][:, 0, :2], exact["poses_3d"][:, 0, :2], atol=1e-5)
    assert (exact["poses_2d"][..., 2] == 1).all()


def test_an_epoch_has_as_many_clips_as_asked_and_weights_share_them_out(walk):
    options = dataclasses.replace(VARIED, clips_per_epoch=34)
    clips = source(walk, options=options)
    names = [clips[i]["action"] for i in range(len(clips))]
    assert (len(clips), names.count("a/walk"), names.count("b/part")) == (34, 18, 16)
    assert share_out(np.array([1.0, 1.0, 1.0]), 4).sum() == 4


def test_a_short_recording_is_padded_and_marked_not_slowed_down(walk):
    short = Motion("c/short", walk[:5])
    clips = source(walk, split="test", more=[short])
    clip = clips[len(clips) - 1]
    assert clip["action"] == "c/short"
    assert clip["frame_mask"].tolist() == [True] * 5 + [False] * 4
    assert clip["frame_ids"][4:].tolist() == [clip["frame_ids"][4]] * 5


def test_another_body_keeps_directions_proportions_and_planted_feet(walk):
    walk = walk.astype(float)
    factors = draw_factors(np.random.default_rng(0), VARIED.body)
    other = rescale_limbs(walk, factors)
    children = [child for _, child in H36M17.bones]
    np.testing.assert_allclose(lengths(other), factors[children, None] * lengths(walk), rtol=1e-6)
    assert factors[3] == factors[6] and factors[13] == factors[16]
    # The foot that stands moves no more than it did, though the legs are of another length.
    ankles = walk[:, [3, 6]]
    standing = np.argmin(ankles[..., 1], axis=1)
    still = standing[1:] == standing[:-1]
    frames = np.arange(89)[still]

    def slip(points):
        feet = points[:, [3, 6]]
        steps = feet[frames + 1, standing[frames]] - feet[frames, standing[frames]]
        return np.linalg.norm(steps, axis=-1)

    assert np.median(slip(other)) < 1.3 * np.median(slip(walk)) + 1


def test_frames_in_between_follow_a_curve(walk):
    t = np.linspace(0, 2, 41)
    circle = np.stack([np.cos(t), np.sin(t), 0 * t], -1)[:, None].repeat(17, 1)
    at = np.linspace(1, 39, 200)
    found = sample_frames(circle, at)[:, 0]
    np.testing.assert_allclose(np.linalg.norm(found, axis=-1), 1, atol=1e-5)
    np.testing.assert_array_equal(sample_frames(walk, np.arange(5.0)), walk[:5])


def test_cameras_cover_what_people_hold(walk):
    pitch, roll, size, outside = [], [], [], []
    for seed in range(300):
        view = draw_view(np.random.default_rng(seed), walk[:27].astype(float), ViewConfig())
        local = view.to_camera(walk[:27])
        assert local[..., 2].min() > 0
        pitch.append(np.degrees(np.arcsin(-view.rotation[0, 2, 1])))
        roll.append(np.degrees(np.arctan2(-view.rotation[0, 0, 1], -view.rotation[0, 1, 1])))
        poses = view.project(local)
        extent = (poses[0].max(0) - poses[0].min(0)).max()
        size.append(extent * view.width / 2 / view.height)
        outside.append(view.outside(poses).any())
    assert np.percentile(pitch, 5) < -5 and np.percentile(pitch, 95) > 20
    assert np.percentile(np.abs(roll), 50) < 10 and np.max(np.abs(roll)) > 20
    assert np.min(size) < 0.15 and np.max(size) > 0.7
    assert 0.01 < np.mean(outside) < 0.4


def test_definitions_move_what_detectors_see_elsewhere_and_nothing_else(walk):
    walk = walk.astype(float)
    rng = np.random.default_rng(0)
    moved = {name: redefine(walk, name, 12, rng) - walk for name in DEFINITIONS}
    assert (moved["mocap"] == 0).all()
    for name in ("coco", "blazepose"):
        nose = np.linalg.norm(moved[name][:, 9], axis=-1)
        assert (nose > 40).all() and (nose < 160).all(), "the nose is on the face"
        head = np.linalg.norm(moved[name][:, 10], axis=-1)
        assert head.mean() > 60, "the eyes are below the top of the head"
        assert np.linalg.norm(moved[name], axis=-1)[:, :7].max() < 90


def test_errors_last_and_grow_where_joints_are_hidden():
    config = KeypointConfig(
        sigma=(0.01, 0.01), persistence=(0.85, 0.85), hidden_side=0, hidden_limb=0, missing=0,
        swap=0,
    )  # fmt: skip
    exact = np.random.default_rng(0).uniform(-0.5, 0.5, (1, 17, 2)).repeat(4000, 0)
    inside, depth = np.zeros((4000, 17), bool), np.ones((4000, 17))
    rng = np.random.default_rng(1)
    error = imitate_detector(exact, depth, inside, config, rng)[..., :2] - exact
    error -= error.mean(0)
    lag = {k: (error[k:] * error[:-k]).mean() / (error**2).mean() for k in (1, 4)}
    assert 0.7 < lag[1] < 0.9 and 0.4 < lag[4] < 0.6
    half = inside.copy()
    half[:, 3] = True
    seen = imitate_detector(exact, depth, half, config, np.random.default_rng(1))
    assert (seen[:, 3, 2] < seen[:, 2, 2]).mean() > 0.95
    assert (seen[:, 3, :2] - exact[:, 3]).std() > 1.5 * error[:, 3].std()
    lost = dataclasses.replace(config, missing=0.2)
    found = imitate_detector(exact, depth, inside, lost, rng)
    assert 0.1 < (found[..., 2] == 0.05).mean() < 0.3


def test_jumps_are_found_and_recordings_cut_there(walk):
    assert not len(find_jumps(walk, 150))
    broken = walk.copy()
    broken[30:34, 2] += (0, 0, 300)
    jumps = find_jumps(broken, 150)
    assert {29, 33} <= set(jumps.tolist())
    assert split_at_jumps(90, np.array([29, 33]), shortest=15) == [(0, 30), (34, 90)]
    assert split_at_jumps(4, np.zeros(0, int), shortest=15) == [(0, 4)]


def test_files_have_frame_rates_and_weights_of_their_own(tmp_path):
    for name in ("a", "b"):
        (tmp_path / f"{name}.bvh").write_text("")
    folder, one = str(tmp_path), str(tmp_path / "a.bvh")
    found = match_recordings([folder, MotionFiles(one, fps=60, weight=0.5)], "data.mocap.train")
    assert [(path.name, item.fps, item.weight) for path, item in found.items()] == [
        ("a.bvh", 60, 0.5),
        ("b.bvh", None, 1.0),
    ]
    config = load_config(["--data.mocap.train", f"[{folder}, {{path: {one}, fps: 60}}]"])
    assert config.data.mocap.train == (folder, MotionFiles(one, fps=60.0))
    assert from_dict(to_dict(config)) == config
    with pytest.raises(ConfigError, match="path"):
        load_config(["--data.mocap.train", "[{file: a.bvh}]"])


def test_an_unreadable_file_is_named_and_skipped_only_where_that_is_asked(tmp_path, capfd):
    mocap_files.write_bvh(tmp_path / "good.bvh", mocap_files.draw_motion(8, 61))
    (tmp_path / "bad.bvh").write_text("HIERARCHY\nnothing")
    config = MocapConfig(train=(str(tmp_path),), fps=30.0, drawn=True, cache_dir="")
    make = {"clip_len": 9, "stride": 9, "split": "train", "input_2d": "detected"}
    with pytest.raises(DataError, match=r"bad\.bvh"):
        build(config, **make)
    clips = build(dataclasses.replace(config, skip_unreadable=True), **make)
    assert {clips[i]["action"] for i in range(len(clips))} == {f"{tmp_path.name}/good"}
    said = capfd.readouterr().err
    assert "bad.bvh" in said and "1 of 2 motion files left out" in said


def test_padding_reaches_the_training_batch(walk):
    clips = source(walk, more=[Motion("c/short", walk[:5])])
    batch = next(pipeline.train_batches(clips, batch_size=len(clips), seed=0))
    assert batch["frame_mask"].dtype == bool
    assert (~batch["frame_mask"]).any() and batch["frame_mask"][:, 0].all()
    assert "frame_mask" not in pipeline.batch_keys(source(walk))


def test_the_cache_is_listed_and_emptied_and_nothing_else_is_touched(tmp_path, capsys):
    motion, cache = tmp_path / "jump.bvh", tmp_path / "cache"
    mocap_files.write_bvh(motion, mocap_files.draw_motion(8, 61))
    config = MocapConfig(train=(str(motion),), fps=30.0, cache_dir=str(cache))
    build(config, clip_len=9, stride=9, split="train", input_2d="detected")
    (cache / "notes.npz").write_bytes(b"mine")
    assert motion_cache.main(["list", "--cache_dir", str(cache)]) == 0
    assert str(motion) in capsys.readouterr().out
    assert not motion_cache.empty(cache, unused=True)
    motion.unlink()
    assert len(motion_cache.empty(cache, unused=True)) == 1
    assert [path.name for path in cache.iterdir()] == ["notes.npz"]
