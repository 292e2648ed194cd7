"""Motion capture as a clip source: from made-up files, and from real ones where there are any."""

import dataclasses

import mocap_files
import numpy as np
import pytest

from posemamba_jax.data.clips import DataError
from posemamba_jax.data.formats.joint_maps import h36m_weights, parse_overrides
from posemamba_jax.data.formats.recordings import (
    ReadOptions,
    RecordingReader,
    find_recordings,
    find_skeleton,
    resample,
)
from posemamba_jax.data.sources.mocap import MocapConfig, build
from posemamba_jax.skeleton import H36M17

JOINT = {name: index for index, name in enumerate(H36M17.joints)}
OPTIONS = ReadOptions(
    fps=120.0, amc_fps=120.0, asf_unit_mm=25.4, bvh_mm_per_unit=10.0, up_axis="y", joints=()
)
LIMBS = [(1, 2), (2, 3), (4, 5), (5, 6), (11, 12), (12, 13), (14, 15), (15, 16), (1, 4), (9, 10)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Two subjects: 07 with two AMC clips, 08 with one BVH clip."""
    folder = tmp_path_factory.mktemp("mocap")
    (folder / "07").mkdir()
    (folder / "08").mkdir()
    mocap_files.write_asf(folder / "07" / "07.asf")
    for clip, frames in (("07_01", 121), ("07_02", 49)):
        motion = mocap_files.draw_motion(len(clip) + frames, frames)
        mocap_files.write_amc(folder / "07" / f"{clip}.amc", motion)
    mocap_files.write_bvh(folder / "08" / "jump.bvh", mocap_files.draw_motion(8, 61))
    return folder


def options(folder, **changes):
    config = MocapConfig(
        train=(str(folder / "07"),),
        test=(str(folder / "08" / "*.bvh"),),
        fps=30.0,
        cameras=2,
        cache_dir="",
    )
    return dataclasses.replace(config, **changes)


def make(config, clip_len=9, stride=3, split="train", input_2d="detected"):
    return build(config, clip_len=clip_len, stride=stride, split=split, input_2d=input_2d)


def read(path, **changes):
    return RecordingReader(dataclasses.replace(OPTIONS, **changes), None).read(path)


def test_clips_hold_to_the_contract(folder):
    source = make(options(folder))
    # 31 and 13 frames at 30 Hz, windows of 9 every 3, two cameras
    assert len(source) == 2 * (8 + 2)
    assert (source.name, source.clip_len, source.num_joints, source.fps) == ("mocap", 9, 17, 30.0)
    clip = source[0]
    assert clip["poses_2d"].shape == clip["poses_3d"].shape == (9, 17, 3)
    scaled = (clip["poses_3d"] - clip["poses_3d"][:, :1]) * clip["mm_per_unit"][:, None, None]
    np.testing.assert_allclose(scaled, clip["poses_3d_mm"], atol=2e-3)
    assert {source[i]["action"] for i in range(len(source))} == {"07/07_01", "07/07_02"}
    assert clip["subject_source"] == "07/07_01.camera0"
    test = make(options(folder), clip_len=7, stride=7, split="test")
    covered = np.unique(np.concatenate([test[i]["frame_ids"] for i in range(len(test))]))
    assert len(covered) == 2 * 16, "every test frame is in a clip"
    assert test[0]["action"] == "08/jump"


def test_a_recording_looks_the_same_whatever_else_is_read(folder):
    alone = make(options(folder, train=(str(folder / "07" / "07_02.amc"),)))
    both = make(options(folder))
    first = [i for i in range(len(both)) if both[i]["action"] == "07/07_02"]
    for a, b in zip(range(len(alone)), first, strict=True):
        for key in ("poses_2d", "poses_3d", "poses_3d_mm", "mm_per_unit"):
            np.testing.assert_array_equal(alone[a][key], both[b][key])


def test_seed_moves_cameras_and_errors_but_not_people(folder):
    first, second = make(options(folder)), make(options(folder, seed=1))
    assert np.abs(first[0]["poses_2d"] - second[0]["poses_2d"]).max() > 0.01
    spans = [np.linalg.norm(s[0]["poses_3d_mm"], axis=-1) for s in (first, second)]
    np.testing.assert_allclose(*spans, atol=1e-2)
    exact = make(options(folder), input_2d="ground_truth")
    np.testing.assert_array_equal(first[0]["poses_3d"], exact[0]["poses_3d"])
    assert (exact[0]["poses_2d"][..., 2] == 1).all()


def test_the_17_joints_of_made_up_asf(folder):
    motion = mocap_files.draw_motion(len("07_02") + 49, 49)
    poses = read(folder / "07" / "07_02.amc")
    truth = mocap_files.evaluate(motion)
    for joint, bone in {
        "l_hip": "lfemur",
        "l_ankle": "lfoot",
        "r_knee": "rtibia",
        "neck": "thorax end",
        "head": "head end",
        "r_shoulder": "rclavicle end",
        "r_elbow": "rhumerus end",
        "r_wrist": "rwrist end",
    }.items():
        np.testing.assert_allclose(poses[:, JOINT[joint]], truth[bone], atol=2e-3, err_msg=joint)
    np.testing.assert_allclose(
        poses[:, 0], (poses[:, JOINT["l_hip"]] + poses[:, JOINT["r_hip"]]) / 2, atol=2e-3
    )


def test_bvh_and_asf_of_one_person_give_the_same_17_joints(folder, tmp_path):
    motion = mocap_files.draw_motion(len("07_02") + 49, 49)
    mocap_files.write_bvh(tmp_path / "a.bvh", motion)
    np.testing.assert_allclose(
        read(tmp_path / "a.bvh"), read(folder / "07" / "07_02.amc"), atol=2e-3
    )


def test_mixamo_like_names_are_known(folder, tmp_path):
    motion = mocap_files.draw_motion(8, 61)
    names = {k: f"mixamorig:{v}" for k, v in mocap_files.BVH_NAMES.items()}
    names |= {"lowerback": "mixamorig:Spine", "upperback": "mixamorig:Spine1"}
    names |= {"thorax": "mixamorig:Spine2"}
    names |= {f"{s}hand": f"mixamorig:{w}HandMiddle1" for s, w in (("l", "Left"), ("r", "Right"))}
    mocap_files.write_bvh(tmp_path / "a.bvh", motion, names=names)
    got, truth = read(tmp_path / "a.bvh"), mocap_files.evaluate(motion)
    for joint, bone in {"belly": "upperback", "l_elbow": "lradius", "l_wrist": "lwrist"}.items():
        np.testing.assert_allclose(got[:, JOINT[joint]], truth[bone], atol=2e-3)


def test_unknown_names_are_named_and_can_be_given(folder, tmp_path):
    motion = mocap_files.draw_motion(8, 61)
    names = mocap_files.BVH_NAMES | {"ltibia": "LinkesKnie"}
    mocap_files.write_bvh(tmp_path / "a.bvh", motion, names=names)
    with pytest.raises(
        DataError, match=r"a\.bvh: .*lacks l_knee \(LeftLeg\).*LinkesKnie.*l_knee=NAME"
    ):
        read(tmp_path / "a.bvh")
    got = read(tmp_path / "a.bvh", joints=(("l_knee", "LinkesKnie"),))
    np.testing.assert_allclose(
        got[:, JOINT["l_knee"]], mocap_files.evaluate(motion)["ltibia"], atol=2e-3
    )


def test_expressions_of_joint_maps():
    names = ("Hip", "A", "B", "c")
    table = {joint: "Hip" for joint in H36M17.joints} | {"belly": "no|a+B", "nose": "x_:C"}
    weights = h36m_weights(names, table, "file")
    np.testing.assert_array_equal(weights[JOINT["belly"]], [0, 0.5, 0.5, 0])
    np.testing.assert_array_equal(weights[JOINT["nose"]], [0, 0, 0, 1])
    for entry in ("belly", "tail=Hip", "belly="):
        with pytest.raises(ValueError, match="not JOINT=NAME"):
            parse_overrides([entry])


def test_wrong_units_are_noticed(folder):
    with pytest.raises(DataError, match=r"jump\.bvh: a leg is 83 mm long.*bvh_mm_per_unit"):
        read(folder / "08" / "jump.bvh", bvh_mm_per_unit=1.0)


def test_files_with_z_up_are_turned_not_mirrored(folder):
    poses = read(folder / "08" / "jump.bvh").astype(float)
    turned = read(folder / "08" / "jump.bvh", up_axis="z").astype(float)
    np.testing.assert_array_equal(turned[..., 1], poses[..., 2])

    def handedness(points):
        left = points[:, JOINT["l_hip"]] - points[:, JOINT["r_hip"]]
        up, ahead = (
            points[:, JOINT["neck"]] - points[:, 0],
            points[:, JOINT["l_knee"]] - points[:, 0],
        )
        return (np.cross(left, up) * ahead).sum(-1)

    np.testing.assert_allclose(handedness(turned), handedness(poses), rtol=1e-3)


@pytest.mark.parametrize("new_fps", [30.0, 50.0, 60.0, 120.0, 144.0])
def test_resampling(folder, new_fps):
    poses = read(folder / "07" / "07_01.amc").astype(float)
    new = resample(poses, 120.0, new_fps)
    assert len(new) == int(120 * new_fps / 120) + 1
    if 120 % new_fps == 0:
        np.testing.assert_array_equal(new, poses[:: int(120 / new_fps)])
    np.testing.assert_allclose(new[-1], poses[-1], atol=1e-6)
    for a, b in LIMBS:
        if (a, b) == (1, 4):
            continue
        length = np.linalg.norm(new[:, a] - new[:, b], axis=-1)
        np.testing.assert_allclose(length, length[0], rtol=1e-5)
    # Close to the curve through the original frames.
    times, old = np.arange(len(new)) / new_fps, np.arange(len(poses)) / 120
    for joint in range(17):
        for axis in range(3):
            line = np.interp(times, old, poses[:, joint, axis])
            np.testing.assert_allclose(new[:, joint, axis], line, atol=2.0)


def test_resampling_one_frame():
    assert resample(np.ones((1, 17, 3)), 120.0, 50.0).shape == (1, 17, 3)


def test_frame_rate_of_bvh_is_its_own(folder):
    assert len(read(folder / "08" / "jump.bvh", fps=60.0, amc_fps=999.0)) == 31


def test_cache_is_used_and_mended(folder, tmp_path, monkeypatch):
    path = folder / "07" / "07_02.amc"
    reader = RecordingReader(OPTIONS, tmp_path)
    first = reader.read(path)
    (cached,) = tmp_path.glob("*.npz")
    with monkeypatch.context() as patch:
        patch.setattr("posemamba_jax.data.formats.recordings.read_amc", None)
        np.testing.assert_array_equal(RecordingReader(OPTIONS, tmp_path).read(path), first)
    cached.write_bytes(cached.read_bytes()[:100])
    np.testing.assert_array_equal(RecordingReader(OPTIONS, tmp_path).read(path), first)
    RecordingReader(dataclasses.replace(OPTIONS, fps=60.0), tmp_path).read(path)
    assert len(list(tmp_path.iterdir())) == 2


def test_cache_folder_that_cannot_be_written(folder, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="cache.*data.mocap.cache_dir"):
        RecordingReader(OPTIONS, tmp_path / "file" / "x").read(folder / "07" / "07_02.amc")


def test_missing_files_are_named(folder, tmp_path):
    with pytest.raises(DataError, match="data.mocap.train: .*nowhere.* matches no AMC"):
        make(options(folder, train=(str(tmp_path / "nowhere" / "*.amc"),)))
    (tmp_path / "note.txt").write_text("")
    with pytest.raises(DataError, match=r"matches 1 file\(s\), none of them AMC"):
        find_recordings([str(tmp_path / "*")], "data.mocap.train")
    with pytest.raises(DataError, match="data.mocap.test is empty"):
        make(options(folder, test=()), split="test")
    with pytest.raises(DataError, match="matched by both"):
        make(options(folder, test=(str(folder / "**" / "*"),)))


def test_skeleton_of_an_amc_file(folder, tmp_path):
    assert find_skeleton(folder / "07" / "07_01.amc") == folder / "07" / "07.asf"
    with pytest.raises(DataError, match=r"09_01\.amc: .*09\.asf.*there is none"):
        find_skeleton(tmp_path / "09_01.amc")
    (tmp_path / "one.asf").write_text("")
    assert find_skeleton(tmp_path / "09_01.amc").name == "one.asf"
    (tmp_path / "two.asf").write_text("")
    assert find_skeleton(tmp_path / "two_clip_1.amc").name == "two.asf"
    with pytest.raises(DataError, match=r"there are one\.asf, two\.asf"):
        find_skeleton(tmp_path / "09_01.amc")


@pytest.mark.parametrize(
    "change, message",
    [
        ({"fps": 0.0}, "fps"),
        ({"amc_fps": float("nan")}, "amc_fps"),
        ({"cameras": 0}, "cameras"),
        ({"seed": -2}, "seed"),
        ({"up_axis": "x"}, "up_axis"),
        ({"joints": ("knee=LeftLeg",)}, "joints"),
    ],
)
def test_bad_options_are_named(change, message):
    with pytest.raises(ValueError, match=f"data.mocap.{message}"):
        MocapConfig(**change)


@pytest.fixture(scope="module")
def real(mocap_dir):
    """Walking and jumping (subject 02), climbing (subject 01), as 17 joints at 120 Hz."""
    return {
        name: read(mocap_dir / name[:2] / f"{name}.amc").astype(float)
        for name in ("02_01", "02_04", "01_08")
    }


def test_real_people_have_real_sizes(real):
    for name, poses in real.items():
        thigh = np.linalg.norm(poses[:, JOINT["l_hip"]] - poses[:, JOINT["l_knee"]], axis=-1)
        shank = np.linalg.norm(poses[:, JOINT["l_knee"]] - poses[:, JOINT["l_ankle"]], axis=-1)
        assert 380 < thigh.mean() < 500 and 380 < shank.mean() < 500, name
        for a, b in LIMBS:
            length = np.linalg.norm(poses[:, a] - poses[:, b], axis=-1)
            np.testing.assert_allclose(length, length[0], rtol=1e-5)
    walk = real["02_01"]
    height = walk[:, JOINT["head"], 1] - walk[:, [3, 6], 1].min(axis=1)
    assert 1400 < np.median(height) < 1900
    # Femurs as the subject's ASF file has them: 7.59371 units of 1/0.45 inch.
    thigh = np.linalg.norm(walk[0, JOINT["l_hip"]] - walk[0, JOINT["l_knee"]])
    assert thigh == pytest.approx(7.59371 / 0.45 * 25.4, rel=1e-5)


def test_real_walker_goes_forward_with_left_on_the_left(real):
    walk = real["02_01"]
    velocity = walk[60:, 0] - walk[:-60, 0]
    way = velocity / np.linalg.norm(velocity, axis=-1, keepdims=True)
    left = np.cross((0.0, 1.0, 0.0), way)
    for joint in ("hip", "shoulder", "knee", "ankle", "wrist"):
        across = walk[:-60, JOINT[f"l_{joint}"]] - walk[:-60, JOINT[f"r_{joint}"]]
        assert ((across * left).sum(-1) > 0).mean() > 0.9, joint
    # Knees point the way of the walk.
    for side in "lr":
        hip, knee, ankle = (walk[:-60, JOINT[f"{side}_{j}"]] for j in ("hip", "knee", "ankle"))
        assert (((knee - (hip + ankle) / 2) * way).sum(-1) > 0).mean() > 0.95
    speed = np.linalg.norm(velocity, axis=-1) / 0.5
    assert 700 < np.median(speed) < 2000, "millimetres per second of a walk"


def test_real_poses_are_upright(real):
    for name in ("02_01", "02_04"):
        y = real[name][..., 1]
        order = [
            y[:, JOINT[j]] for j in ("l_ankle", "l_knee", "l_hip", "belly", "neck", "nose", "head")
        ]
        assert all((np.median(b - a) > 50) for a, b in zip(order, order[1:], strict=False))
        assert -100 < y.min() < 200, "feet on the ground"


def test_a_source_of_real_motion(mocap_dir, tmp_path):
    config = MocapConfig(
        train=(str(mocap_dir / "02" / "02_0[1-3].amc"),),
        test=(str(mocap_dir / "02" / "02_04.amc"),),
        cameras=2,
        cache_dir=str(tmp_path),
    )
    source = make(config, clip_len=27, stride=9)
    assert {source[i]["action"] for i in range(len(source))} == {"02/02_01", "02/02_02", "02/02_03"}
    poses_2d = source.arrays["poses_2d"]
    exact = make(config, clip_len=27, stride=9, input_2d="ground_truth").arrays["poses_2d"]
    assert np.abs(exact[..., :2]).max() < 1
    error = 500 * np.linalg.norm(poses_2d - exact, axis=-1)
    assert 1 < np.median(error) < 120
    assert len(list(tmp_path.glob("*.npz"))) == 3
