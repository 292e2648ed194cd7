"""What a clip must be before it is drawn."""

from fractions import Fraction

import numpy as np
import pytest

from posemamba_jax.pictures.render import exact_frame_rate, prepare_clip, render
from posemamba_jax.pictures.render.scene import bone_sides, find_ground
from posemamba_jax.skeleton import H36M17


@pytest.mark.parametrize(
    ("fps", "exact"),
    [
        (25, Fraction(25)),
        (30.0, Fraction(30)),
        (29.97, Fraction(30000, 1001)),
        (23.976, Fraction(24000, 1001)),
        (59.94, Fraction(60000, 1001)),
        (12.5, Fraction(25, 2)),
        (Fraction(100, 3), Fraction(100, 3)),
    ],
)
def test_frame_rates_become_exact(fps, exact):
    assert exact_frame_rate(fps) == exact


@pytest.mark.parametrize("fps", [0, -1, float("nan"), float("inf"), "fast", None, 1e9])
def test_a_frame_rate_that_is_none_is_refused(fps):
    with pytest.raises(ValueError, match="fps"):
        exact_frame_rate(fps)


@pytest.mark.parametrize("up", ["-y", "y", "z"])
def test_turning_upright_keeps_the_hand(walker, up):
    """The person's head is above the feet, and nothing is mirrored."""
    camera = walker(3)
    x, y, z = np.moveaxis(camera, -1, 0)
    given = {"-y": camera, "y": np.stack([x, -y, -z], -1), "z": np.stack([x, z, -y], -1)}[up]
    clip = prepare_clip(given, fps=25, up=up)
    pose = clip.poses[0, 0]
    assert pose[10, 2] > pose[0, 2] > pose[3, 2]
    # Facing the viewer, so the left hand is on the right, and the nose nearer than the neck.
    assert pose[13, 0] > pose[16, 0]
    assert pose[9, 1] < pose[8, 1]


def test_the_ground_lies_under_the_lowest_joint_and_holds_the_clip(walker):
    clip = prepare_clip(walker(25), fps=25)
    ground = find_ground(clip)
    assert ground.z == pytest.approx(clip.poses[..., 2].min())
    offsets = np.abs(clip.poses[..., :2] - np.float32(ground.centre))
    assert offsets.max() < ground.half
    lines = ground.lines()
    assert (lines[..., 2] == np.float32(ground.z)).all() or np.allclose(lines[..., 2], ground.z)
    assert ground.half / ground.step == pytest.approx(round(ground.half / ground.step))


def test_root_relative_people_stand_side_by_side_and_others_stay(walker):
    camera = walker(5)
    relative = camera - camera[:, :1]
    apart = prepare_clip([relative, relative], fps=25).poses
    assert (apart[1, ..., 0].min() - apart[0, ..., 0].max()) > 0
    together = prepare_clip([camera, camera], fps=25).poses
    np.testing.assert_array_equal(together[0], together[1])


def test_what_is_not_finite_is_no_joint(walker):
    poses = walker(4)
    poses[1] = np.inf
    poses[2, 3, 0] = np.nan
    clip = prepare_clip(poses, fps=25)
    assert np.isnan(clip.poses[0, 1]).all()
    assert np.isfinite(clip.points()).all()
    empty = prepare_clip(np.full_like(poses, np.nan), fps=25)
    assert np.isfinite(find_ground(empty).half)


def test_sides_of_bones_are_the_sides_of_their_ends():
    sides = dict(zip(H36M17.bones, bone_sides(H36M17), strict=True))
    assert sides[(8, 11)] == "left"
    assert sides[(0, 1)] == "right"
    assert sides[(7, 8)] == "middle"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"poses_3d": np.zeros((4, 16, 3))}, r"poses_3d has shape .*expected \(frames, 17, 3\)"),
        ({"poses_3d": np.zeros((0, 17, 3))}, "nothing to show"),
        ({"poses_3d": "walk"}, "poses_3d is not an array of numbers"),
        ({"ground_truth": np.zeros((3, 17, 3))}, "ground_truth has 1 tracks of 3 frames"),
        ({"poses_2d": np.zeros((4, 17, 2))}, "image_size"),
        ({"poses_2d": np.zeros((4, 17, 4)), "image_size": (9, 9)}, "poses_2d has shape"),
        ({"image_size": (0, 9)}, "image_size"),
        ({"image_size": 9}, "image_size"),
        ({"mask": np.ones(3, bool)}, "mask has shape"),
        ({"track_names": ["a", "b"]}, "track_names"),
        ({"up": "x"}, "up is 'x'"),
    ],
)
def test_arrays_that_do_not_fit_are_named(change, message):
    arguments = {"poses_3d": np.zeros((4, 17, 3)), "fps": 25} | change
    with pytest.raises(ValueError, match=message):
        prepare_clip(**arguments)


def test_render_refuses_what_it_cannot_write(tmp_path, walker):
    with pytest.raises(ValueError, match=r"\.mp4, \.gif, \.html"):
        render(tmp_path / "out.avi", walker(2), fps=25)
    with pytest.raises(ValueError, match="fps is missing"):
        render(tmp_path / "out.gif", walker(2))
    with pytest.raises(FileNotFoundError, match="no such video"):
        render(tmp_path / "out.mp4", walker(2), video=tmp_path / "none.mp4")
    (tmp_path / "text.mp4").write_text("not a video")
    with pytest.raises(ValueError, match="not a video"):
        render(tmp_path / "out.mp4", walker(2), video=tmp_path / "text.mp4")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["text.mp4"]
