"""Every format is recognised and read back right, in every joint set that it comes in."""

import json

import numpy as np
import pytest
import writers
from moving_people import IMAGE_SIZE, walking

from posemamba_jax.predict.keypoints import (
    JOINT_SETS,
    KeypointError,
    ReadOptions,
    build_tracks,
    read_keypoints,
    to_h36m17,
    with_image_size,
)


def _write(folder, format, people, **extra):
    if format == "alphapose":
        return writers.alphapose(folder / "alphapose-results.json", people, **extra)
    if format == "openpose":
        return writers.openpose(folder / "openpose", people, **extra)
    if format == "mmpose":
        return writers.mmpose(folder / "results.json", people, **extra)
    return writers.mediapipe(folder / "landmarks.json", people, IMAGE_SIZE, **extra)


@pytest.mark.parametrize(
    "format, joint_set",
    [
        ("alphapose", "halpe26"),
        ("alphapose", "coco17"),
        ("openpose", "body25"),
        ("mmpose", "coco17"),
        ("mmpose", "halpe26"),
        ("mediapipe", "mediapipe33"),
    ],
)
def test_people_are_read_back(tmp_path, people, format, joint_set):
    path = _write(tmp_path, format, people, joint_set=joint_set)
    keypoints = with_image_size(read_keypoints(path), IMAGE_SIZE)
    assert (keypoints.format, keypoints.joint_set) == (format, joint_set)
    assert keypoints.num_frames == 40
    tracks, how = build_tracks(keypoints)
    assert "file" in how
    assert [t.id for t in tracks] == [1, 2]
    for track in tracks:
        truth = writers.expected_h36m(people[track.id], joint_set)
        np.testing.assert_allclose(track.keypoints[..., :2], truth, atol=1e-3)
        np.testing.assert_allclose(
            track.keypoints[..., 2], np.where(np.isnan(truth[..., 0]), 0, 0.9)
        )


@pytest.mark.parametrize("joint_set", ["h36m17", "coco17", "halpe26", "body25", "mediapipe33"])
def test_plain_array_is_recognised_by_its_joints(tmp_path, joint_set):
    poses = walking(30)
    keypoints = read_keypoints(writers.array(tmp_path / "k.npy", poses, joint_set))
    assert (keypoints.format, keypoints.joint_set) == ("array", joint_set)
    (track,), _ = build_tracks(with_image_size(keypoints, IMAGE_SIZE))
    truth = writers.expected_h36m(poses, joint_set)
    np.testing.assert_allclose(track.keypoints[..., :2], truth, atol=1e-3)


@pytest.mark.parametrize("joint_set", ["coco17", "h36m17"])
def test_videopose3d(tmp_path, joint_set):
    poses = walking(30)
    path = writers.videopose3d(tmp_path / "data_2d.npz", poses, IMAGE_SIZE, joint_set)
    keypoints = read_keypoints(path)
    assert (keypoints.format, keypoints.joint_set) == ("videopose3d", joint_set)
    assert (keypoints.image_size, keypoints.fps) == (IMAGE_SIZE, 30.0)
    (track,), _ = build_tracks(with_image_size(keypoints, None))
    truth = writers.expected_h36m(poses, joint_set)
    np.testing.assert_allclose(track.keypoints[..., :2], truth, atol=1e-3)


def test_videopose3d_with_several_clips_needs_a_name(tmp_path):
    path = tmp_path / "data_2d_h36m_gt.npz"
    clips = [walking(20, seed=i).astype(np.float32) for i in range(4)]
    np.savez(
        path,
        positions_2d={"S9": {"Walking": clips[:2]}, "S11": {"Eating": clips[2:]}},
        metadata={"layout_name": "h36m", "num_joints": 17},
    )
    with pytest.raises(KeypointError, match="holds 4 clips; name one with --clip.*S9/Walking/0"):
        read_keypoints(path)
    with pytest.raises(KeypointError, match="0 clips match"):
        read_keypoints(path, options=ReadOptions(clip="S1"))
    read = read_keypoints(path, options=ReadOptions(clip="S11/Eating/1"))
    np.testing.assert_array_equal(read.detections[5].keypoints[:, :2], clips[3][5])


def test_coordinates_in_all_units_agree(tmp_path):
    poses = walking(12)
    width, height = IMAGE_SIZE
    in_model_units = poses * 2 / width - np.array([1, height / width])
    in_fractions = poses / np.array(IMAGE_SIZE)
    for units, values in (("model", in_model_units), ("image", in_fractions), ("pixels", poses)):
        np.save(tmp_path / "k.npy", values)
        options = ReadOptions(joint_set="h36m17", coordinates=units)
        keypoints = read_keypoints(tmp_path / "k.npy", options=options)
        (track,), _ = build_tracks(with_image_size(keypoints, IMAGE_SIZE))
        np.testing.assert_allclose(track.keypoints[..., :2], poses, atol=1e-3)


def test_normalised_coordinates_are_not_taken_for_pixels(tmp_path):
    np.save(tmp_path / "k.npy", walking(12) / np.array(IMAGE_SIZE))
    with pytest.raises(KeypointError, match="--coordinates"):
        read_keypoints(tmp_path / "k.npy")


def test_image_size_must_be_known_and_plausible(tmp_path, people):
    keypoints = read_keypoints(writers.alphapose(tmp_path / "a.json", people))
    with pytest.raises(KeypointError, match="--image_size"):
        with_image_size(keypoints, None)
    with pytest.raises(KeypointError, match="outside an image of 100x100"):
        with_image_size(keypoints, (100, 100))


def test_other_layouts_of_mmpose_agree(tmp_path, people):
    path = writers.mmpose(tmp_path / "demo.json", people)
    reference = read_keypoints(path)
    frames = json.loads(path.read_text())["instance_info"]
    (tmp_path / "video.json").write_text(json.dumps(frames))
    (tmp_path / "lists.json").write_text(json.dumps([f["instances"] for f in frames]))
    folder = tmp_path / "images"
    folder.mkdir()
    for frame in frames:
        (folder / f"{frame['frame_id']:06d}.json").write_text(json.dumps(frame["instances"]))
    for other in (tmp_path / "video.json", tmp_path / "lists.json", folder):
        keypoints = read_keypoints(other)
        assert keypoints.format == "mmpose"
        assert keypoints.num_frames == reference.num_frames
        for a, b in zip(keypoints.detections, reference.detections, strict=True):
            np.testing.assert_array_equal(a.keypoints, b.keypoints)


def test_openpose_list_of_frames_and_single_file(tmp_path, people):
    folder = writers.openpose(tmp_path / "openpose", people)
    files = sorted(folder.iterdir())
    whole = read_keypoints(folder)
    (tmp_path / "list.json").write_text(json.dumps([json.loads(f.read_text()) for f in files]))
    listed = read_keypoints(tmp_path / "list.json")
    assert listed.format == "openpose" and listed.num_frames == whole.num_frames
    single = read_keypoints(files[0])
    assert single.num_frames == 1
    np.testing.assert_array_equal(single.detections[0].keypoints, whole.detections[0].keypoints)


def test_mediapipe_short_layouts(tmp_path):
    points = writers.as_joint_set(walking(3), "mediapipe33") / np.array(IMAGE_SIZE)
    rows = np.concatenate([points, np.zeros((3, 33, 1)), np.ones((3, 33, 1))], -1).tolist()
    for layout in (rows, [[person] for person in rows], [{"pose_landmarks": p} for p in rows]):
        path = tmp_path / "m.json"
        path.write_text(json.dumps([None, *layout]))
        keypoints = read_keypoints(path)
        assert (keypoints.format, keypoints.num_frames) == ("mediapipe", 4)
        np.testing.assert_allclose(keypoints.detections[2].keypoints[:, :2], points[2], atol=1e-6)


def test_frames_without_anybody_count(tmp_path, people):
    del people[1]
    people[2][30:] = np.nan
    keypoints = read_keypoints(writers.openpose(tmp_path / "o", people))
    assert keypoints.num_frames == 40
    # AlphaPose writes nothing for an empty frame, so the end of the clip is not in the file.
    assert read_keypoints(writers.alphapose(tmp_path / "a.json", people)).frames == (0, 29)


def test_larger_sets_use_their_body_joints(tmp_path):
    poses = walking(5)
    body = writers.as_joint_set(poses, "halpe26")
    np.save(tmp_path / "k.npy", np.concatenate([body, np.full((5, 110, 2), 7.0)], 1))
    (track,), _ = build_tracks(with_image_size(read_keypoints(tmp_path / "k.npy"), IMAGE_SIZE))
    truth = writers.expected_h36m(poses, "halpe26")
    np.testing.assert_allclose(track.keypoints[..., :2], truth, atol=1e-3)


@pytest.mark.parametrize("joint_set", JOINT_SETS)
def test_conversion_marks_joints_whose_sources_are_missing(joint_set):
    poses = walking(2)
    keypoints = np.concatenate([poses, np.ones((2, 17, 1))], -1)
    keypoints = writers.as_joint_set(keypoints, joint_set)
    names = writers.PLACES[joint_set]
    keypoints[1, [i for i, n in enumerate(names) if n == "l_hip"], 2] = 0
    converted = to_h36m17(keypoints, joint_set)
    assert (converted[0, :, 2] > 0).all()
    missing = set(np.array(writers.PLACES["h36m17"])[converted[1, :, 2] == 0])
    derived = writers.DERIVED[joint_set]
    wanted = {"l_hip"} | {"root" for _ in [0] if "l_hip" in derived.get("root", ())}
    wanted |= {"belly" for _ in [0] if "root" in wanted}
    assert missing == wanted
    assert np.isnan(converted[1, :, :2]).all(-1).sum() == len(wanted)


def test_posetrack18_must_be_named(tmp_path):
    poses = walking(4)
    np.save(tmp_path / "k.npy", writers.as_joint_set(poses, "posetrack18"))
    with pytest.raises(KeypointError, match="posetrack18"):
        read_keypoints(tmp_path / "k.npy")
    read = read_keypoints(tmp_path / "k.npy", options=ReadOptions(joint_set="posetrack18"))
    (track,), _ = build_tracks(with_image_size(read, IMAGE_SIZE))
    truth = writers.expected_h36m(poses, "posetrack18")
    np.testing.assert_allclose(track.keypoints[..., :2], truth, atol=1e-3)


def test_small_files_that_travel_with_the_repository(data_dir):
    """The README beside them states what each holds."""
    expected = {
        "alphapose.json": ("alphapose", "halpe26", 6),
        "openpose": ("openpose", "body25", 3),
        "mmpose.json": ("mmpose", "coco17", 3),
        "mediapipe.json": ("mediapipe", "mediapipe33", 3),
        "videopose3d.npz": ("videopose3d", "coco17", 6),
        "h36m17.npy": ("array", "h36m17", 6),
    }
    for name, (format, joint_set, num_frames) in expected.items():
        keypoints = read_keypoints(data_dir / "keypoints" / name)
        found = (keypoints.format, keypoints.joint_set, keypoints.num_frames)
        assert found == (format, joint_set, num_frames), name
