"""Skeleton tables and the horizontal flip."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from selective_scan_jax import H36M_LIMB_WALK

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
