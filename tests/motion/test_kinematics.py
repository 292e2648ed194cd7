"""Rotations and forward kinematics, and the ASF/AMC and BVH readers built on them."""

import itertools

import hypothesis
import hypothesis.strategies as st
import mocap_files
import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from posemamba_jax.data.clips import DataError
from posemamba_jax.data.formats.amc import read_amc
from posemamba_jax.data.formats.asf import read_asf
from posemamba_jax.data.formats.bvh import read_bvh
from posemamba_jax.data.motion.kinematics import Hierarchy, forward_kinematics, rotation_matrices

ORDERS = ["".join(p) for n in (1, 2, 3) for p in itertools.permutations("xyz", n)] + ["zxz", "yxy"]


@pytest.mark.parametrize("order", ORDERS)
def test_rotation_matrices_are_scipys_intrinsic_ones(order):
    angles = np.random.default_rng(0).uniform(-4, 4, (5, 2, len(order)))
    expected = Rotation.from_euler(order.upper(), angles.reshape(10, -1)).as_matrix()
    np.testing.assert_allclose(
        rotation_matrices(angles, order), expected.reshape(5, 2, 3, 3), atol=1e-12
    )


def test_no_rotation_is_the_identity():
    np.testing.assert_array_equal(rotation_matrices(np.zeros((2, 0)), ""), [np.eye(3)] * 2)


def test_forward_kinematics_of_a_chain_on_paper():
    """A quarter turn about z at the root, then one about x at the elbow."""
    quarter = np.pi / 2
    rotations = np.stack(
        [rotation_matrices([quarter], "z"), rotation_matrices([quarter], "x"), np.eye(3)]
    )[None]
    offsets = np.array([[9.0, 9, 9], [2, 0, 0], [0, 3, 0]])
    positions = forward_kinematics((-1, 0, 1), offsets, rotations, np.array([[1.0, 1, 1]]))
    # The root's turn takes x to y; the elbow's takes y to z, which the root's leaves alone.
    np.testing.assert_allclose(positions[0], [[1, 1, 1], [1, 3, 1], [1, 3, 4]], atol=1e-12)


@pytest.mark.parametrize("parents", [(0, 0), (-1, 1), (-1, -1), (-1, 5)])
def test_hierarchy_wants_parents_first(parents):
    with pytest.raises(ValueError, match="parent"):
        Hierarchy(("a", "b"), parents, np.zeros((2, 3)))


TWO_BONES = {
    # root, upper (at the root), lower, lower end; inches
    "rest": [[0, 0, 0], [0, 0, 0], [0, -10, 0], [0, -15, 0]],
    # z turns the hanging chain towards +x
    "side": [[2, 4, 6], [2, 4, 6], [12, 4, 6], [17, 4, 6]],
    # the lower bone's x axis, turned by 90 degrees about z, is y, along which the bone lies
    "twist": [[0, 0, 0], [0, 0, 0], [0, -10, 0], [0, -15, 0]],
    # x swings the chain from -y to -z, and the root's turn about y takes -z to -x
    "both": [[0, 0, 0], [0, 0, 0], [-10, 0, 0], [-15, 0, 0]],
}


def test_asf_and_bvh_of_two_bones_on_paper(data_dir):
    expected = 25.4 * np.array(list(TWO_BONES.values()), float)
    folder = data_dir / "motion"
    skeleton = read_asf(folder / "two_bones.asf")
    assert skeleton.hierarchy.names == ("root", "upper", "lower", "lower end")
    positions = read_amc(folder / "two_bones.amc", skeleton)
    np.testing.assert_allclose(positions, expected, atol=1e-9)
    motion = read_bvh(folder / "two_bones.bvh", mm_per_unit=25.4)
    assert motion.hierarchy.names == skeleton.hierarchy.names
    np.testing.assert_allclose(motion.positions, expected, atol=1e-9)
    assert motion.fps == 120, "a frame time with few digits is rounded"


@pytest.fixture(scope="module")
def made_up(tmp_path_factory):
    folder = tmp_path_factory.mktemp("made_up")
    motion = mocap_files.draw_motion(3, 25)
    mocap_files.write_asf(folder / "07.asf")
    mocap_files.write_amc(folder / "07_01.amc", motion)
    return folder, motion


def test_asf_amc_against_bone_by_bone_evaluation(made_up):
    folder, motion = made_up
    skeleton = read_asf(folder / "07.asf")
    positions = read_amc(folder / "07_01.amc", skeleton)
    expected = mocap_files.evaluate(motion)
    names = skeleton.hierarchy.names
    assert {"lfemur", "head end", "rhand end"} < set(names)
    for joint, name in enumerate(names):
        np.testing.assert_allclose(positions[:, joint], expected[name], atol=1e-4, err_msg=name)


@pytest.mark.parametrize("order", ["ZXY", "XYZ", "YZX"])
def test_bvh_of_the_same_skeleton_gives_the_same_positions(made_up, tmp_path, order):
    folder, motion = made_up
    skeleton = read_asf(folder / "07.asf")
    expected = read_amc(folder / "07_01.amc", skeleton)
    mocap_files.write_bvh(tmp_path / "a.bvh", motion, order=order, mm_per_unit=5.0)
    got = read_bvh(tmp_path / "a.bvh", mm_per_unit=5.0)
    index = {name: k for k, name in enumerate(got.hierarchy.names)}
    for joint, name in enumerate(skeleton.hierarchy.names):
        bone, end, _ = name.partition(" end")
        k = index[mocap_files.BVH_NAMES[bone] + end]
        np.testing.assert_allclose(got.positions[:, k], expected[:, joint], atol=1e-4, err_msg=name)


def test_bones_keep_their_lengths(made_up):
    folder, _ = made_up
    skeleton = read_asf(folder / "07.asf")
    _check_lengths(skeleton, read_amc(folder / "07_01.amc", skeleton))


def test_bones_of_real_motion_keep_their_lengths(mocap_dir):
    for subject, clip in (("01", "01_02"), ("02", "02_03")):
        skeleton = read_asf(mocap_dir / subject / f"{subject}.asf")
        _check_lengths(skeleton, read_amc(mocap_dir / subject / f"{clip}.amc", skeleton))


def _check_lengths(skeleton, positions):
    offsets = np.linalg.norm(skeleton.hierarchy.offsets, axis=-1)
    for joint, parent in enumerate(skeleton.hierarchy.parents):
        if parent < 0 or offsets[joint] == 0:
            continue
        length = np.linalg.norm(positions[:, joint] - positions[:, parent], axis=-1)
        np.testing.assert_allclose(length, offsets[joint], rtol=1e-6)


def test_radians_and_comments_are_understood(made_up, tmp_path):
    folder, motion = made_up
    expected = read_amc(folder / "07_01.amc", read_asf(folder / "07.asf"))
    text = (folder / "07.asf").read_text().replace("angle deg", "angle rad  # not degrees")
    lines = []
    for line in text.splitlines():
        words = line.split()
        if words[:1] == ["axis"] and len(words) == 5:
            line = f"axis {' '.join(str(np.deg2rad(float(w))) for w in words[1:4])} XYZ"
        lines.append(line)
    (tmp_path / "07.asf").write_text("\n".join(lines))
    radians = {name: np.deg2rad(values) for name, values in motion.angles.items()}
    mocap_files.write_amc(tmp_path / "07_01.amc", mocap_files.Motion(radians, motion.root))
    amc = (tmp_path / "07_01.amc").read_text().replace(":DEGREES", ":RADIANS\n# a remark")
    (tmp_path / "07_01.amc").write_text(amc.replace("\n3\n", "\n3  # third\n\n"))
    got = read_amc(tmp_path / "07_01.amc", read_asf(tmp_path / "07.asf"))
    np.testing.assert_allclose(got, expected, atol=1e-3)


ASF_FAULTS = [
    ("length 7.2", "length long", r"07\.asf:\d+: length needs 1 finite"),
    ("length 7.2", "length nan", r":\d+: length needs 1 finite"),
    ("direction 0.3 -0.95 0.0", "direction 0.3 -0.95", r":\d+: direction needs 3"),
    ("direction 0.3 -0.95 0.0", "direction 0 0 0", "needs a direction"),
    ("dof rx ry rz", "dof rx rx rz", "degrees of freedom"),
    ("dof rx ry rz", "dof rx ry tz", "shifts or stretches"),
    ("axis 0 0 18 XYZ", "axis 0 0 18", "axis order"),
    ("name ltibia", "name lfemur", "a second bone"),
    ("    lfemur ltibia", "    lfemur lshin", "no bone is named 'lshin'"),
    ("    lfemur ltibia", "    lfemur rtibia", "more than one parent"),
    ("    lfemur ltibia", "", "does not connect"),
    ("    root lhipjoint", "    root root", "more than one parent"),
    (":hierarchy", ":elsewhere", "no :hierarchy section"),
    ("length 0.45", "length 0", "length must be positive"),
    ("angle deg", "angle gon", "deg or rad"),
    ("order TX TY TZ RX RY RZ", "", "no 'order' line"),
]


@pytest.mark.parametrize("old, new, message", ASF_FAULTS)
def test_asf_faults_are_named(made_up, tmp_path, old, new, message):
    text = (made_up[0] / "07.asf").read_text()
    assert old in text
    (tmp_path / "07.asf").write_text(text.replace(old, new, 1))
    with pytest.raises(DataError, match=message):
        read_asf(tmp_path / "07.asf")


AMC_FAULTS = [
    ("\n5\n", "\nfive\n", r"07_01\.amc:\d+: expected a frame number, got 'five'"),
    ("\n5\nroot", "\n5\nroof", "expected root, got 'roof"),
    ("\nlfemur ", "\nlfemur 1 ", "'lfemur' needs 3 value"),
    (":DEGREES", ":RADIANS", "angles are in radians here"),
    ("\nlfemur", "\ntail", "no degrees of freedom in the ASF: 'tail'"),
    ("\n1\n", "\n", "no frames"),
    ("\n2\nroot ", "\n2\nroot nan ", "'root' needs 6"),
]


@pytest.mark.parametrize("old, new, message", AMC_FAULTS)
def test_amc_faults_are_named(made_up, tmp_path, old, new, message):
    text = (made_up[0] / "07_01.amc").read_text()
    assert old in text
    (tmp_path / "07_01.amc").write_text(text.replace(old, new, 1))
    with pytest.raises(DataError, match=message):
        read_amc(tmp_path / "07_01.amc", read_asf(made_up[0] / "07.asf"))


def test_line_of_a_fault_is_the_right_one(made_up, tmp_path):
    lines = (made_up[0] / "07_01.amc").read_text().splitlines()
    lines[200] = lines[200].split()[0] + " x" * (len(lines[200].split()) - 1)
    (tmp_path / "a.amc").write_text("\n".join(lines))
    with pytest.raises(DataError, match=r"a\.amc:201: "):
        read_amc(tmp_path / "a.amc", read_asf(made_up[0] / "07.asf"))


BVH_FAULTS = [
    ("HIERARCHY", "", "expected 'HIERARCHY'"),
    ("Frames: 25", "Frames: 26", "promises 26 frames, the file has 25"),
    ("Frames: 25", "Frames: 1e9", "promises 1000000000 frames"),
    ("Frames: 25", "Frames: -1", "at least 1"),
    ("Frame Time: 0.00833", "Frame Time: 8", "frame time must be"),
    ("CHANNELS 3 Zrotation", "CHANNELS 3 Wrotation", "Xposition .. Zrotation"),
    ("CHANNELS 3 Zrotation", "CHANNELS 99 Zrotation", "0 to 6 channels"),
    ("End Site", "Start Site", "expected JOINT, End Site or '}'"),
    ("JOINT LeftLeg", "JOINT LeftFoot", "name of its own"),
    ("OFFSET 0.0", "OFFSET zero", "must be a finite number"),
]


@pytest.fixture(scope="module")
def bvh_text(made_up, tmp_path_factory):
    path = tmp_path_factory.mktemp("bvh") / "a.bvh"
    mocap_files.write_bvh(path, made_up[1])
    return path.read_text()


@pytest.mark.parametrize("old, new, message", BVH_FAULTS)
def test_bvh_faults_are_named(bvh_text, tmp_path, old, new, message):
    assert old in bvh_text
    (tmp_path / "a.bvh").write_text(bvh_text.replace(old, new, 1))
    with pytest.raises(DataError, match=f"a\\.bvh:\\d+: .*({message})"):
        read_bvh(tmp_path / "a.bvh", mm_per_unit=10)


def test_braces_may_be_on_the_joints_line(bvh_text, tmp_path):
    (tmp_path / "a.bvh").write_text(bvh_text)
    (tmp_path / "b.bvh").write_text("{".join(part.rstrip() + " " for part in bvh_text.split("{")))
    plain, compact = (read_bvh(tmp_path / f"{n}.bvh", mm_per_unit=10) for n in "ab")
    assert plain.hierarchy.names == compact.hierarchy.names
    np.testing.assert_array_equal(plain.positions, compact.positions)


def test_position_channels_of_a_joint_move_it(tmp_path):
    (tmp_path / "a.bvh").write_text(
        "HIERARCHY\nROOT a\n{\nOFFSET 0 0 0\nCHANNELS 0\nJOINT b\n{\nOFFSET 1 2 3\n"
        "CHANNELS 2 Yposition Xrotation\nEnd Site\n{\nOFFSET 0 0 1\n}\n}\n}\n"
        "MOTION\nFrames: 2\nFrame Time: 0.02\n2 0\n7 90\n"
    )
    positions = read_bvh(tmp_path / "a.bvh", mm_per_unit=10).positions
    np.testing.assert_allclose(positions[:, 1], [[10, 20, 30], [10, 70, 30]])
    np.testing.assert_allclose(positions[1, 2], [10, 60, 30], atol=1e-9)


def _damage(text, cuts, data):
    words = text.split(" ")
    for position, replacement in cuts:
        words[position % len(words)] = replacement
    return " ".join(words)[:data]


DAMAGE = st.lists(
    st.tuples(
        st.integers(0, 10**6),
        st.sampled_from(
            ["", "nan", "1e999", "{", "}", "begin", "end", "\n", ":x", "-1", "root", "²"]
        ),
    ),
    max_size=3,
)


@hypothesis.settings(max_examples=60, derandomize=True, deadline=None)
@hypothesis.given(cuts=DAMAGE, length=st.integers(1, 12000))
def test_damaged_files_raise_data_errors_only(bvh_text, made_up, tmp_path_factory, cuts, length):
    folder = tmp_path_factory.getbasetemp()
    skeleton = read_asf(made_up[0] / "07.asf")
    texts = {
        "d.bvh": bvh_text,
        "d.asf": (made_up[0] / "07.asf").read_text(),
        "d.amc": (made_up[0] / "07_01.amc").read_text(),
    }
    for name, text in texts.items():
        path = folder / name
        path.write_text(_damage(text, cuts, length), encoding="latin-1")
        try:
            if name == "d.bvh":
                assert np.isfinite(read_bvh(path, mm_per_unit=1).positions).all()
            elif name == "d.asf":
                read_asf(path)
            else:
                assert np.isfinite(read_amc(path, skeleton)).all()
        except DataError as error:
            assert str(path) in str(error)
