"""Joint angles of known postures, and OpenSim's files read back by their documented layout."""

import csv

import numpy as np
import pytest
from rooms import generate
from test_export import result_of

from posemamba_jax.data.motion.body import CHANNELS, draw_body, pose_body
from posemamba_jax.errors import UserError
from posemamba_jax.predict.angles import ANGLES, compute_angles
from posemamba_jax.predict.export import write_angles, write_mot, write_trc
from posemamba_jax.predict.world import Camera
from posemamba_jax.skeleton import H36M17

JOINT = H36M17.joints.index


def standing() -> np.ndarray:
    """Makes a (17, 3) pose, upright, facing +z, arms hanging; y up, so that the left is +x."""
    pose = np.zeros((17, 3))
    for name, place in {
        "root": (0, 950, 0), "belly": (0, 1180, 0), "neck": (0, 1430, 0), "nose": (0, 1520, 60),
        "head": (0, 1640, 0), "l_hip": (130, 950, 0), "l_knee": (130, 510, 0),
        "l_ankle": (130, 70, 0), "l_shoulder": (180, 1400, 0), "l_elbow": (180, 1110, 0),
        "l_wrist": (180, 850, 0),
    }.items():  # fmt: skip
        pose[JOINT(name)] = place
        if name.startswith("l_"):
            pose[JOINT("r" + name[1:])] = np.array(place) * (-1, 1, 1)
    return pose


def turned(axis: str, degrees: float) -> np.ndarray:
    """Makes a right-handed rotation about x (the person's left), y (up) or z (forward)."""
    c, s = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    return {
        "x": np.array([[1, 0, 0], [0, c, -s], [0, s, c]]),
        "y": np.array([[c, 0, s], [0, 1, 0], [-s, 0, c]]),
        "z": np.array([[c, -s, 0], [s, c, 0], [0, 0, 1]]),
    }[axis]


def move(pose, pivot: str, joints, rotation) -> np.ndarray:
    moved = pose.copy()
    centre = pose[JOINT(pivot)]
    for name in joints:
        moved[JOINT(name)] = centre + rotation @ (pose[JOINT(name)] - centre)
    return moved


def angles_of(pose, planted=None) -> dict[str, float]:
    return {name: float(v[0]) for name, v in compute_angles(pose[None], planted).items()}


UPPER = [
    n for n in H36M17.joints if n not in ("root",) and not n.endswith(("hip", "knee", "ankle"))
]


def test_standing_is_zero_and_what_cannot_be_known_is_empty():
    found = angles_of(standing())
    for name, value in found.items():
        unknown = name.endswith(("rotation", "dorsiflexion", "plane")) and "trunk" not in name
        assert np.isnan(value) if unknown else abs(value) < 1e-6, name


@pytest.mark.parametrize("side, sign", [("left", 1), ("right", -1)])
def test_legs_bend_the_way_they_are_named(side, sign):
    letter = side[0]
    leg = [f"{letter}_knee", f"{letter}_ankle"]
    raised = move(standing(), f"{letter}_hip", leg, turned("x", -40))
    assert angles_of(raised)[f"{side}_hip_flexion"] == pytest.approx(40)
    out = move(standing(), f"{letter}_hip", leg, turned("z", sign * 25))
    assert angles_of(out)[f"{side}_hip_abduction"] == pytest.approx(25)
    bent = move(standing(), f"{letter}_knee", leg[1:], turned("x", 60))
    found = angles_of(bent)
    assert found[f"{side}_knee_flexion"] == pytest.approx(60)
    assert found[f"{side}_hip_rotation"] == pytest.approx(0, abs=1e-6)
    # The thigh turns inwards, so the bent shank swings outwards.
    inwards = move(bent, f"{letter}_hip", leg, turned("y", -sign * 15))
    assert angles_of(inwards)[f"{side}_hip_rotation"] == pytest.approx(15)
    lunge = move(standing(), f"{letter}_ankle", [f"{letter}_knee"], turned("x", 12))
    planted = np.array([[side == "left", side == "right"]])
    assert angles_of(lunge, planted)[f"{side}_ankle_dorsiflexion"] == pytest.approx(12)


@pytest.mark.parametrize("side, sign", [("left", 1), ("right", -1)])
def test_arms_bend_the_way_they_are_named(side, sign):
    letter = side[0]
    arm = [f"{letter}_elbow", f"{letter}_wrist"]
    ahead = angles_of(move(standing(), f"{letter}_shoulder", arm, turned("x", -70)))
    assert ahead[f"{side}_shoulder_flexion"] == pytest.approx(70)
    assert ahead[f"{side}_shoulder_elevation"] == pytest.approx(70)
    assert ahead[f"{side}_shoulder_elevation_plane"] == pytest.approx(90)
    out = angles_of(move(standing(), f"{letter}_shoulder", arm, turned("z", sign * 50)))
    assert out[f"{side}_shoulder_abduction"] == pytest.approx(50)
    assert out[f"{side}_shoulder_elevation_plane"] == pytest.approx(0, abs=1e-6)
    bent = move(standing(), f"{letter}_elbow", arm[1:], turned("x", -90))
    assert angles_of(bent)[f"{side}_elbow_flexion"] == pytest.approx(90)
    inwards = move(bent, f"{letter}_shoulder", arm, turned("y", -sign * 30))
    assert angles_of(inwards)[f"{side}_shoulder_rotation"] == pytest.approx(30)


def test_the_trunk_bends_and_the_pelvis_turns_the_way_they_are_named():
    chest = [n for n in UPPER if n != "belly"]
    for axis, degrees, name, wanted in (
        ("x", 30, "trunk_flexion", 30),
        ("z", 20, "trunk_bending", 20),
        ("y", 25, "trunk_rotation", 25),
    ):
        assert angles_of(move(standing(), "belly", chest, turned(axis, degrees)))[
            name
        ] == pytest.approx(wanted)
    everything = move(standing(), "root", H36M17.joints, turned("y", 90))
    assert angles_of(everything)["pelvis_heading"] == pytest.approx(90)
    assert angles_of(everything)["trunk_rotation"] == pytest.approx(0, abs=1e-6)
    leaning = move(everything, "root", UPPER, turned("z", -15))
    assert angles_of(leaning)["trunk_lean_forward"] == pytest.approx(15)
    hitched = move(standing(), "root", ["r_hip", "l_hip"], turned("z", -8))
    assert angles_of(hitched)["pelvis_obliquity"] == pytest.approx(8)


def test_generated_bodies_have_the_angles_they_were_given():
    """The body that the generator poses by joint angles: read back from its joints alone."""
    rng = np.random.default_rng(0)
    body = draw_body(rng)
    posture = np.zeros((1, len(CHANNELS)))
    given = {"l_flexion": 0.6, "l_elbow": 1.1, "r_abduction": 0.4, "r_elbow": 0.9, "height": 0.9,
             "spine_pitch": 0.5}  # fmt: skip
    for name, value in given.items():
        posture[0, CHANNELS[name]] = value
    ankles = np.array([[[100.0, body.ankle, 0], [-100.0, body.ankle, 0]]])
    pose = pose_body(body, posture, np.zeros((1, 3)), np.zeros(1), ankles)
    found = {name: np.radians(values[0]) for name, values in compute_angles(pose).items()}
    assert found["left_elbow_flexion"] == pytest.approx(1.1)
    assert found["right_elbow_flexion"] == pytest.approx(0.9)
    assert found["right_shoulder_abduction"] == pytest.approx(0.4, abs=0.02)
    # Half of the spine's bend is at the belly, half at the neck, which turns the shoulders only.
    assert found["trunk_flexion"] == pytest.approx(0.25)


def walking_result(frames=40):
    world = generate(1, "walk", frames / 30)
    predicted = np.ones(frames, bool)
    predicted[10:13] = False
    world[~predicted] = np.nan
    planted = np.zeros((frames, 2), bool)
    planted[:20, 0] = planted[20:, 1] = True
    camera = Camera(1000.0, 0.0, "given", (640, 480), np.eye(3), 1500.0)
    return result_of(
        world - world[:, :1],
        predicted,
        fps=30.0,
        world_poses=world,
        planted=planted,
        camera=camera,
    )


def test_angles_as_csv(tmp_path):
    result = walking_result()
    write_angles(tmp_path / "a.csv", result)
    with open(tmp_path / "a.csv", newline="") as file:
        header, *rows = csv.reader(file)
    assert header == ["frame", "time", "observed", *ANGLES] and len(rows) == 40
    angles = compute_angles(result.poses_3d.astype(float), result.planted)
    for t, row in enumerate(rows):
        for name, text in zip(ANGLES, row[3:], strict=True):
            value = angles[name][t]
            assert text == "" if np.isnan(value) else abs(float(text) - value) < 0.006
    assert set(rows[11][3:]) == {""}


def test_trc_has_the_documented_layout(tmp_path):
    """opensim.stanford.edu's description of marker files, line by line."""
    result = walking_result()
    write_trc(tmp_path / "walk.trc", result)
    lines = (tmp_path / "walk.trc").read_text().split("\n")
    assert lines[0].split("\t") == ["PathFileType", "4", "(X/Y/Z)", "walk.trc"]
    keys, values = lines[1].split("\t"), lines[2].split("\t")
    head = dict(zip(keys, values, strict=True))
    assert head["DataRate"] == head["CameraRate"] == "30" and head["Units"] == "mm"
    assert head["NumFrames"] == "40" and head["NumMarkers"] == "17"
    names = lines[3].split("\t")
    assert names[:2] == ["Frame#", "Time"] and names[2::3] == list(H36M17.joints)
    axes = lines[4].split("\t")
    assert axes[2:8] == ["X1", "Y1", "Z1", "X2", "Y2", "Z2"] and axes[-1] == "Z17"
    assert lines[5] == "" and lines[-1] == "" and len(lines) == 6 + 40 + 1
    for t, line in enumerate(lines[6:-1]):
        words = line.split("\t")
        assert len(words) == 2 + 51 and words[0] == str(t + 1)
        assert float(words[1]) == pytest.approx(t / 30, abs=1e-6)
        if result.predicted[t]:
            places = np.array(words[2:], float).reshape(17, 3)
            np.testing.assert_allclose(places, result.world_poses[t], atol=6e-4)
        else:
            assert set(words[2:]) == {"NaN"}


def test_opensim_reads_both_files(tmp_path):
    opensim = pytest.importorskip("opensim", reason="needs OpenSim: pip install opensim")
    result = walking_result()
    write_trc(tmp_path / "walk.trc", result)
    write_mot(tmp_path / "walk.mot", result)
    markers = opensim.TimeSeriesTableVec3(str(tmp_path / "walk.trc"))
    assert (markers.getNumRows(), markers.getNumColumns()) == (40, 17)
    assert markers.getTableMetaDataString("Units") == "mm"
    place = markers.getRowAtIndex(20).getElt(0, 3)
    found = [place[axis] for axis in range(3)]
    np.testing.assert_allclose(found, result.world_poses[20, 3], atol=6e-4)
    coordinates = opensim.Storage(str(tmp_path / "walk.mot"))
    assert coordinates.getSize() == 37 and coordinates.isInDegrees()


def test_mot_has_the_documented_layout_and_holds_the_motion(tmp_path):
    result = walking_result()
    write_mot(tmp_path / "walk.mot", result)
    lines = (tmp_path / "walk.mot").read_text().split("\n")
    end = lines.index("endheader")
    head = dict(line.split("=") for line in lines[1:end])
    columns = lines[end + 1].split("\t")
    table = np.array([line.split("\t") for line in lines[end + 2 : -1]], float)
    assert lines[0] == "Coordinates" and head["inDegrees"] == "yes"
    assert table.shape == (int(head["nRows"]), int(head["nColumns"])) == (37, len(columns))
    assert (np.diff(table[:, 0]) > 0).all() and np.isfinite(table).all()
    column = dict(zip(columns, table.T, strict=True))
    there = result.predicted
    root = np.stack([column[f"pelvis_t{axis}"] for axis in "xyz"], -1)
    np.testing.assert_allclose(root, result.world_poses[there, 0] / 1000, atol=1e-6)
    angles = compute_angles(result.poses_3d.astype(float), result.planted)
    np.testing.assert_allclose(
        column["knee_angle_l"], angles["left_knee_flexion"][there], atol=1e-5
    )
    np.testing.assert_allclose(
        column["hip_adduction_r"], -angles["right_hip_abduction"][there], atol=1e-5
    )
    # Tilt, list and rotation about z, x and y, in that order, are the pelvis' axes.
    tilt, lean, turn = (np.radians(column[f"pelvis_{n}"]) for n in ("tilt", "list", "rotation"))
    hips = result.world_poses[there, JOINT("r_hip")] - result.world_poses[there, JOINT("l_hip")]
    right = np.stack(
        [
            np.cos(tilt) * np.sin(turn) + np.sin(tilt) * np.sin(lean) * np.cos(turn),
            np.sin(tilt) * np.sin(turn) - np.cos(tilt) * np.sin(lean) * np.cos(turn),
            np.cos(lean) * np.cos(turn),
        ],
        axis=-1,
    )
    hips /= np.linalg.norm(hips, axis=-1, keepdims=True)
    np.testing.assert_allclose(right, hips, atol=1e-5)
    assert np.abs(np.diff(column["pelvis_rotation"])).max() < 30


def test_opensim_files_need_millimetres(tmp_path):
    result = result_of(np.ones((3, 17, 3)), units="half the image width")
    for write, kind in ((write_trc, "trc"), (write_mot, "mot")):
        with pytest.raises(UserError, match=f"--outputs {kind}: person 3 has no millimetres"):
            write(tmp_path / f"a.{kind}", result)
