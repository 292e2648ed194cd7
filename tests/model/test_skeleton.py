"""Skeleton tables and the horizontal flip."""

import dataclasses
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from selective_scan_jax import H36M_LIMB_WALK
from skeletons import HAND21, REVERSED

from posemamba_jax.errors import DataError
from posemamba_jax.files.skeleton_file import load_skeleton, save_skeleton
from posemamba_jax.skeleton import H36M17, Skeleton


def test_bones_form_a_tree_from_the_root():
    children = [child for _, child in H36M17.bones]
    assert sorted(children + [H36M17.root]) == list(range(17))


def test_left_and_right_are_paired_by_name():
    for left, right in zip(H36M17.left, H36M17.right, strict=True):
        assert H36M17.joints[left].removeprefix("l_") == H36M17.joints[right].removeprefix("r_")
        assert H36M17.joints[left].startswith("l_") and H36M17.joints[right].startswith("r_")


def test_mirror_keeps_bones():
    mirrored = {(H36M17.mirror[a], H36M17.mirror[b]) for a, b in H36M17.bones}
    assert mirrored == set(H36M17.bones)


@pytest.mark.parametrize("channels", [2, 3])
@pytest.mark.parametrize("module", [np, jnp])
def test_flip(module, channels):
    poses = module.asarray(np.random.default_rng(0).normal(size=(2, 4, 17, channels)), "float32")
    flipped = H36M17.flip(poses)
    assert type(flipped) is type(poses) and flipped.dtype == poses.dtype
    np.testing.assert_array_equal(flipped[..., 4, 0], -poses[..., 1, 0])  # l_hip from r_hip
    np.testing.assert_array_equal(flipped[..., 16, 1:], poses[..., 13, 1:])  # r_wrist from l_wrist
    np.testing.assert_array_equal(flipped[..., 8, 0], -poses[..., 8, 0])  # the neck is its own
    np.testing.assert_array_equal(H36M17.flip(flipped), poses)


def test_flip_under_jit():
    poses = np.ones((1, 17, 3), np.float32)
    np.testing.assert_array_equal(jax.jit(H36M17.flip)(poses), H36M17.flip(poses))


def test_flip_refuses_other_joints():
    with pytest.raises(ValueError, match=r"\(4, 16, 3\).*17"):
        H36M17.flip(np.zeros((4, 16, 3)))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"bones": ((0, 17),)}, "bones names joint 17"),
        ({"left": (4,)}, "left and right"),
        ({"limb_walk": (0, 1)}, "limb_walk has 2 slots"),
        ({"root": -1}, "root names joint -1"),
        ({"joints": ("root",) * 17}, "joint 'root' is there twice"),
        ({"bones": ((0, 1), (2, 1))}, "child of a bone 1 is there twice"),
        ({"root": 1}, "root 'r_hip' is the child of a bone"),
        ({"bones": ((2, 1), (3, 2), (1, 3))}, "circle through 'r_hip', 'r_knee', 'r_ankle'"),
    ],
)
def test_wrong_table_is_named(change, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(H36M17, **change)


def test_other_skeletons():
    arm = Skeleton("arm", ("shoulder", "elbow"), ((0, 1),), (), (), (0, 0))
    np.testing.assert_array_equal(arm.flip(np.ones((2, 2))), [[-1, 1], [-1, 1]])


def test_limb_walk_is_the_scan_packages():
    # The scan package knows nothing of skeletons, so the walk stands in both.
    assert H36M17.limb_walk == H36M_LIMB_WALK


def test_the_first_joint_that_differs_is_named():
    assert H36M17.first_difference(dataclasses.replace(H36M17, name="other")) is None
    for change, message in (
        ({"joints": (*H36M17.joints[:16], "hand")}, "joint 16 is 'r_wrist' .* and 'hand'"),
        ({"left": H36M17.left[1:], "right": H36M17.right[1:]}, "joint 1 .*mirror image 'l_hip'"),
        ({"bones": (*H36M17.bones[:-1], (0, 16))}, "joint 16 .*parent 'root'"),
    ):
        assert re.search(message, H36M17.first_difference(dataclasses.replace(H36M17, **change)))
    assert "joint 0 is 'root' (the root)" in H36M17.first_difference(HAND21)


@pytest.mark.parametrize("skeleton", [H36M17, HAND21, REVERSED])
def test_skeleton_files_come_back_as_they_were(skeleton, tmp_path):
    save_skeleton(tmp_path / "skeleton.yaml", skeleton)
    loaded = load_skeleton(str(tmp_path / "skeleton.yaml"))
    assert sorted(loaded.bones) == sorted(skeleton.bones)
    assert dataclasses.replace(loaded, bones=skeleton.bones) == skeleton


def test_a_skeleton_file_needs_names_and_parents_only(tmp_path):
    file = tmp_path / "arm.yaml"
    file.write_text("joints: [shoulder, elbow, wrist]\nparents: [null, shoulder, 1]\n")
    assert load_skeleton(str(file)) == Skeleton(
        "arm", ("shoulder", "elbow", "wrist"), ((0, 1), (1, 2)), (), (), (0, 0, 1)
    )
    assert load_skeleton("h36m17") is H36M17


# Each level is ten times the one before.
LEVELS = [f"  a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 10)]
MULTIPLYING = "\n".join(["parents: []", "joints:", "  a0: &a0 [x]", *LEVELS])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("joints: [a, b]", "expected a skeleton with the keys"),
        ("joints: a\nparents: []", "joints must be a list of names"),
        ("joints: [a, on]\nparents: [null, a]", "joints has True.*in quotes"),
        ("joints: [a, b]\nparents: [null]", "parents must be a list of 2 joints"),
        ("joints: [a, b]\nparents: [null, c]", "parents has 'c'"),
        ("joints: [a, b]\nparents: [null, null]", "root must be given"),
        ("joints: [a, b]\nparents: [null, a]\nside: [a]", "unknown key 'side'"),
        ("joints: [a, a]\nparents: [null, a]", "'a' is there twice"),
        ("joints: [a, b]\nparents: [null, a]\nlimb_walk: [0]", "limb_walk must be a list of 2"),
        ("joints: [", "not valid YAML"),
        ("joints: [a]\nparents: [null]\njoints: [b]", "joints is given twice, in line 1 and .*3"),
        ("joints: [!!bool a]\nparents: [null]", "not valid YAML"),
        (MULTIPLYING, "joints must be a list of names"),
    ],
)
def test_a_bad_skeleton_file_is_explained_in_one_line(text, message, tmp_path):
    file = tmp_path / "s.yaml"
    file.write_text(text)
    with pytest.raises(DataError, match=f"s.yaml: .*{message}") as error:
        load_skeleton(str(file))
    assert "\n" not in str(error.value)
