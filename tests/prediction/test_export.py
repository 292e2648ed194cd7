"""Files on disk hold the prediction: tables number for number, BVH within a millimetre."""

import csv
import dataclasses
import json
import os
import re
import subprocess
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from posemamba_jax.data.formats.bvh import read_bvh
from posemamba_jax.predict.export import Result, write_bvh, write_csv, write_json, write_npz
from posemamba_jax.predict.export.bvh import fit_fixed_lengths, to_y_up
from posemamba_jax.predict.scale import (
    LEG_SHARE,
    leg_length,
    mm_per_unit_from_bone,
    mm_per_unit_from_height,
    relative_size,
)
from posemamba_jax.predict.smooth import one_euro, smooth_both_ways
from posemamba_jax.skeleton import H36M17

# Joints as the BVH file names them; an end site belongs to the last bone of its limb.
BVH_NAMES = {
    "root": "Hips", "r_hip": "RightUpLeg", "r_knee": "RightLeg", "r_ankle": "RightLeg end",
    "l_hip": "LeftUpLeg", "l_knee": "LeftLeg", "l_ankle": "LeftLeg end", "belly": "Spine",
    "neck": "Neck", "nose": "Head", "head": "Head end", "l_shoulder": "LeftArm",
    "l_elbow": "LeftForeArm", "l_wrist": "LeftForeArm end", "r_shoulder": "RightArm",
    "r_elbow": "RightForeArm", "r_wrist": "RightForeArm end",
}  # fmt: skip


def moving_body(num_frames: int, seed: int = 0, jitter: float = 15.0) -> np.ndarray:
    """Makes (frames, 17, 3) millimetres in camera axes: every bone swings and turns on its own.

    `jitter` changes the lengths of bones from frame to frame, as predictions do.
    """
    rng = np.random.default_rng(seed)
    lengths = dict.fromkeys(H36M17.bones, 250.0) | {(0, 1): 130.0, (0, 4): 130.0}
    time = np.arange(num_frames)
    poses = np.zeros((num_frames, 17, 3))
    for parent, child in H36M17.bones:
        rate, phase = rng.uniform(0.02, 0.25, 3), rng.uniform(0, 6, 3)
        direction = np.sin(time[:, None] * rate + phase) + 0.3 * rng.standard_normal(3)
        direction /= np.linalg.norm(direction, axis=-1, keepdims=True)
        length = lengths[parent, child] + jitter * rng.standard_normal((num_frames, 1))
        poses[:, child] = poses[:, parent] + length * direction
    return poses.astype(np.float32)


def result_of(poses, predicted=None, **changes) -> Result:
    num_frames = len(poses)
    predicted = np.ones(num_frames, bool) if predicted is None else predicted
    poses = np.where(predicted[:, None, None], poses, np.nan).astype(np.float32)
    edges = np.flatnonzero(np.diff(np.concatenate([[0], predicted, [0]])))
    values = dict(
        track=3,
        poses_3d=poses,
        poses_2d=np.where(np.isfinite(poses), 100 + poses / 10, np.nan).astype(np.float32),
        predicted=predicted,
        observed=predicted.copy(),
        observed_joints=np.tile(predicted[:, None], (1, 17)),
        segments=[(int(a), int(b)) for a, b in edges.reshape(-1, 2)],
        root_translation=np.where(predicted[:, None], 0, np.nan).astype(np.float32)
        * np.ones(3, np.float32),
        frame_numbers=np.arange(1, num_frames + 1),
        fps=25.0,
        image_size=(640, 480),
        units="mm",
        mm_per_unit=np.where(predicted, 900.0, np.nan).astype(np.float32),
        source="clip \ud800.json",
        source_format="alphapose",
        joint_set="halpe26",
    )
    return Result(**values | changes)


@pytest.fixture
def gappy():
    predicted = np.ones(30, bool)
    predicted[:3] = predicted[12:17] = predicted[28:] = False
    return result_of(moving_body(30), predicted)


def joints_of_bvh(path, mm_per_unit):
    """Computes (frames, 17, 3) positions in the file's axes, and frames per second."""
    motion = read_bvh(path, mm_per_unit=mm_per_unit)
    names = motion.hierarchy.names
    index = [names.index(BVH_NAMES[joint]) for joint in H36M17.joints]
    return motion.positions[:, index], motion.fps


def test_npz(tmp_path, gappy):
    write_npz(tmp_path / "r.npz", gappy)
    with np.load(tmp_path / "r.npz") as file:  # no allow_pickle
        found = dict(file)
    for name in ("poses_3d", "poses_2d", "predicted", "observed", "observed_joints",
                 "root_translation", "frame_numbers", "mm_per_unit"):  # fmt: skip
        np.testing.assert_array_equal(found[name], getattr(gappy, name))
    assert found["joint_names"].tolist() == list(H36M17.joints)
    assert (found["fps"], found["units"], found["track"]) == (25, "mm", 3)
    assert found["segments"].tolist() == [[3, 12], [17, 28]]
    assert found["image_size"].tolist() == [640, 480]


def test_json(tmp_path, gappy):
    write_json(tmp_path / "r.json", gappy)
    text = (tmp_path / "r.json").read_text()
    assert "NaN" not in text  # which no JSON reader outside Python accepts
    found = json.loads(text)
    assert len(found["frames"]) == 30 and found["joint_names"] == list(H36M17.joints)
    for t, frame in enumerate(found["frames"]):
        assert frame["frame"] == t + 1 and frame["time"] == pytest.approx(t / 25)
        assert (frame["pose_3d"] is not None) == gappy.predicted[t]
        if gappy.predicted[t]:
            np.testing.assert_allclose(frame["pose_3d"], gappy.poses_3d[t], atol=1e-4)
            np.testing.assert_allclose(frame["pose_2d"], gappy.poses_2d[t], atol=1e-3)


def test_csv(tmp_path, gappy):
    write_csv(tmp_path / "r.csv", gappy)
    with open(tmp_path / "r.csv", newline="") as file:
        header, *rows = csv.reader(file)
    assert len(rows) == 30 and header[3:6] == ["root_x", "root_y", "root_z"]
    for t, row in enumerate(rows):
        assert row[0] == str(t + 1) and len(row) == len(header) == 54
        if gappy.predicted[t]:
            numbers = np.array(row[3:], float).reshape(17, 3)
            np.testing.assert_allclose(numbers, gappy.poses_3d[t], rtol=1e-5)
        else:
            assert set(row[3:]) == {""}


@settings(max_examples=12, derandomize=True, deadline=None)
@given(st.integers(0, 1000), st.integers(1, 60))
def test_bvh_positions_agree_with_the_fitted_prediction(tmp_path_factory, seed, num_frames):
    poses = moving_body(num_frames, seed)
    path = tmp_path_factory.mktemp("bvh") / "r.bvh"
    write_bvh(path, result_of(poses))
    found, fps = joints_of_bvh(path, mm_per_unit=1000)
    assert fps == pytest.approx(25) and len(found) == num_frames
    wanted = to_y_up(fit_fixed_lengths(poses))
    assert np.linalg.norm(found - wanted, axis=-1).max() < 1.0  # millimetre


def test_bvh_of_rigid_motion_is_the_prediction_itself(tmp_path):
    poses = moving_body(50, jitter=0)
    write_bvh(tmp_path / "r.bvh", result_of(poses))
    found, _ = joints_of_bvh(tmp_path / "r.bvh", mm_per_unit=1000)
    assert np.linalg.norm(found - to_y_up(poses), axis=-1).max() < 1.0


def test_fit_keeps_directions_and_makes_both_sides_alike():
    poses = moving_body(80)
    fitted = fit_fixed_lengths(poses)
    lengths = {}
    for parent, child in H36M17.bones:
        before, after = poses[:, child] - poses[:, parent], fitted[:, child] - fitted[:, parent]
        length = np.linalg.norm(after, axis=-1)
        np.testing.assert_allclose(length, length[0], rtol=1e-6)
        lengths[parent, child] = length[0]
        cosine = (before * after).sum(-1) / np.linalg.norm(before, axis=-1) / length
        np.testing.assert_allclose(cosine, 1, atol=1e-6)
    for (parent, child), length in lengths.items():
        other = lengths.get((H36M17.mirror[parent], H36M17.mirror[child]), length)
        assert other == pytest.approx(length)


def test_bvh_holds_poses_in_gaps(tmp_path, gappy):
    write_bvh(tmp_path / "r.bvh", gappy)
    found, _ = joints_of_bvh(tmp_path / "r.bvh", mm_per_unit=1000)
    assert len(found) == 30
    for gap, held in ((slice(0, 3), 3), (slice(12, 17), 11), (slice(28, 30), 27)):
        np.testing.assert_allclose(found[gap], np.broadcast_to(found[held], found[gap].shape))
    wanted = to_y_up(fit_fixed_lengths(gappy.poses_3d[gappy.predicted]))
    assert np.linalg.norm(found[gappy.predicted] - wanted, axis=-1).max() < 1.0


def test_bvh_moves_the_root_and_knows_units(tmp_path):
    poses = moving_body(5, jitter=0)
    places = np.arange(15, dtype=np.float32).reshape(5, 3) * 100
    write_bvh(tmp_path / "r.bvh", result_of(poses, root_translation=places))
    found, _ = joints_of_bvh(tmp_path / "r.bvh", mm_per_unit=1000)
    np.testing.assert_allclose(found, to_y_up(poses + places[:, None]), atol=1.0)
    small = result_of(poses / 1000, units="half the image width")
    write_bvh(tmp_path / "s.bvh", small)
    found, _ = joints_of_bvh(tmp_path / "s.bvh", mm_per_unit=1)
    np.testing.assert_allclose(found, to_y_up(poses / 1000), atol=1e-3)


def test_bvh_stands_up_with_the_left_hand_on_the_left(tmp_path):
    """Someone who faces the camera: y up, facing +z, the own left is +x."""
    standing = np.zeros((2, 17, 3), np.float32)
    index = H36M17.joints.index
    for name, place in {
        "r_hip": (-130, 0, 0), "l_hip": (130, 0, 0), "r_knee": (-130, 440, 0),
        "l_knee": (130, 440, 0), "r_ankle": (-130, 880, 0), "l_ankle": (130, 880, 0),
        "belly": (0, -230, 0), "neck": (0, -480, 0), "nose": (0, -560, -60),
        "head": (0, -680, 0), "l_shoulder": (150, -450, 0), "l_elbow": (400, -450, 0),
        "l_wrist": (650, -450, 0), "r_shoulder": (-150, -450, 0), "r_elbow": (-400, -450, 0),
        "r_wrist": (-650, -450, 0),
    }.items():  # fmt: skip
        standing[:, index(name)] = place
    write_bvh(tmp_path / "r.bvh", result_of(standing))
    found, _ = joints_of_bvh(tmp_path / "r.bvh", mm_per_unit=1000)
    assert found[0, index("head"), 1] > 600 and found[0, index("l_ankle"), 1] < -800
    assert found[0, index("l_wrist"), 0] > 600 and found[0, index("nose"), 2] > 50
    # Close to the rest pose, so nearly nothing is turned but the neck and the collar bones.
    last = (tmp_path / "r.bvh").read_text().splitlines()[-1].split()
    np.testing.assert_allclose(np.array(last[:18], float), 0, atol=1e-4)


def test_bvh_angles_do_not_jump(tmp_path):
    time = np.arange(200)[:, None]
    poses = moving_body(200, jitter=0) * 0
    turn = np.concatenate([np.cos(0.1 * time), 0 * time, np.sin(0.1 * time)], -1)
    body = moving_body(1, jitter=0)[0]
    for j in range(17):  # the whole body turns about the vertical several times
        x, y, z = body[j]
        across = np.array([-1, 1, 1]) * turn[:, [2, 1, 0]]
        poses[:, j] = x * turn + z * across + np.array([0, y, 0])
    write_bvh(tmp_path / "r.bvh", result_of(poses))
    lines = (tmp_path / "r.bvh").read_text().splitlines()
    motion = np.array([line.split() for line in lines[-200:]], float)
    assert np.abs(np.diff(motion[:, 3:], axis=0)).max() < 90


def test_bvh_survives_a_bone_without_length(tmp_path):
    poses = moving_body(6, jitter=0)
    poses[2:, 10] = poses[2:, 9]
    poses[:, 3] = poses[:, 2]
    write_bvh(tmp_path / "r.bvh", result_of(poses))
    found, _ = joints_of_bvh(tmp_path / "r.bvh", mm_per_unit=1000)
    assert np.isfinite(found).all()


def test_bvh_grammar_as_importers_expect_it(tmp_path):
    """Blender's importer reads fixed keywords, one statement a line, numbers without commas."""
    write_bvh(tmp_path / "r.bvh", result_of(moving_body(7)))
    lines = (tmp_path / "r.bvh").read_text().split("\n")
    assert lines[0] == "HIERARCHY" and lines[-1] == ""
    start = lines.index("MOTION")
    assert lines[start + 1] == "Frames: 7" and lines[start + 2] == "Frame Time: 0.04000000"
    number = r"-?\d+\.\d+"
    channels, depth = 0, 0
    for line in lines[1:start]:
        words = line.strip()
        depth += words == "{"
        depth -= words == "}"
        assert re.fullmatch(
            r"(ROOT|JOINT) \w+|End Site|\{|\}|"
            rf"OFFSET {number} {number} {number}|"
            r"CHANNELS (6 Xposition Yposition Zposition|3) Zrotation Xrotation Yrotation",
            words,
        ), line
        if words.startswith("CHANNELS"):
            channels += int(words.split()[1])
    assert depth == 0
    assert len({w for w in lines if "JOINT" in w}) == 16
    for line in lines[start + 3 : -1]:
        assert len(line.split()) == channels and all(
            re.fullmatch(number, word) for word in line.split()
        )


def test_blender_imports_it(tmp_path):
    """The judge itself, where there is one; it needs an older NumPy, so a Python of its own."""
    python = os.environ.get("POSEMAMBA_BLENDER_PYTHON")
    if not python:
        pytest.skip("set POSEMAMBA_BLENDER_PYTHON to a Python with the bpy package (Blender)")
    poses = moving_body(30)
    write_bvh(tmp_path / "r.bvh", result_of(poses))
    names = ",".join(BVH_NAMES[joint] for joint in H36M17.joints)
    script = Path(__file__).with_name("blender_import.py")
    done = subprocess.run(
        [python, script, tmp_path / "r.bvh", tmp_path / "found.npy", names],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert "25 frames per second" in done.stdout
    x, y, z = np.moveaxis(to_y_up(fit_fixed_lengths(poses)), -1, 0)
    found = np.load(tmp_path / "found.npy") * 1000
    assert np.linalg.norm(found - np.stack([x, -z, y], -1), axis=-1).max() < 1.0


def test_scale_from_height_and_bone():
    poses = moving_body(40, jitter=0).astype(np.float64)
    for scale in (1e-3, 2.0):
        from_height = mm_per_unit_from_height(poses * scale, 1800)
        assert leg_length(poses * scale) * from_height == pytest.approx(LEG_SHARE * 1800)
        from_bone = mm_per_unit_from_bone(poses * scale, "l_hip-l_knee", 250)
        assert from_bone == pytest.approx(1 / scale)
    for call, word in (
        (lambda: mm_per_unit_from_height(poses, 1.8), "1.8 mm"),
        (lambda: mm_per_unit_from_height(poses * 0, 1800), "no length"),
        (lambda: mm_per_unit_from_bone(poses, "tail", 100), "l_hip-l_knee"),
        (lambda: mm_per_unit_from_bone(poses, "l_hip-l_knee", float("nan")), "nan"),
    ):
        with pytest.raises(ValueError, match=word):
            call()


def test_relative_size_follows_distance_and_not_pose():
    poses = moving_body(200, jitter=0).astype(np.float64)
    np.testing.assert_allclose(relative_size(poses, 25), 1, atol=1e-6)
    closer = np.linspace(1, 1.5, 200)
    size = relative_size(poses * closer[:, None, None], 25)
    np.testing.assert_allclose(size[20:-20], closer[20:-20] / np.median(closer), rtol=1e-2)


def test_one_euro_smooths_noise_and_follows_steps():
    rng = np.random.default_rng(0)
    noisy = 0.01 * rng.standard_normal((500, 3))
    smooth = one_euro(noisy, 30.0)
    assert smooth[50:].std() < 0.5 * noisy.std()
    still = np.full((20, 17, 3), 0.7, np.float32)
    np.testing.assert_array_equal(one_euro(still, 30.0), still)
    step = np.concatenate([np.zeros((10, 1)), np.ones((60, 1))])
    eager, lazy = one_euro(step, 30.0, beta=5.0), one_euro(step, 30.0, beta=0.0)
    assert eager[14, 0] > 0.9 > lazy[14, 0]
    with pytest.raises(ValueError, match="min_cutoff"):
        one_euro(step, 30.0, min_cutoff=0)


def test_smoothing_both_ways_does_not_lag():
    time = np.arange(300)[:, None] / 30
    motion = np.sin(2 * np.pi * 0.3 * time + np.arange(4))
    noisy = motion + 0.02 * np.random.default_rng(0).standard_normal(motion.shape)
    once = np.abs(one_euro(noisy, 30.0, beta=2.0) - motion).mean()
    both = np.abs(smooth_both_ways(noisy, 30.0, beta=2.0) - motion).mean()
    assert both < np.abs(noisy - motion).mean() and both < 0.5 * once
    mirrored = smooth_both_ways(noisy[::-1], 30.0)[::-1]
    np.testing.assert_allclose(mirrored, smooth_both_ways(noisy, 30.0))


def test_result_is_plain_data(gappy):
    assert dataclasses.is_dataclass(gappy) and gappy.num_frames == 30
