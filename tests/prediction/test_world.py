"""Where people are: paths, planted feet, ground and camera against known rooms."""

import dataclasses
import json

import numpy as np
import pytest
import writers
from moving_people import WINDOW
from rooms import foot_drift_mm_s, generate, make_camera, path_error_mm, read_mocap, watch

from posemamba_jax.data.formats.bvh import read_bvh
from posemamba_jax.predict.export.result import Result
from posemamba_jax.predict.lift import normalise
from posemamba_jax.predict.options import PredictOptions
from posemamba_jax.predict.run import run
from posemamba_jax.predict.scale import DEFAULT_HEIGHT_MM
from posemamba_jax.predict.world import (
    find_world,
    focal_from_metadata,
    guess_focal,
    known_focal,
)
from posemamba_jax.predict.world import place as place_module
from posemamba_jax.predict.world.focal import GUESS_DEVIATION
from posemamba_jax.predict.world.results import add_world


def place(room, focal=None, deviation=0.0):
    focal = known_focal(room.camera.focal_px) if focal is None else focal
    return find_world(room.people, room.camera.image_size, room.fps, focal, deviation)


@pytest.mark.parametrize(
    "camera, distance",
    [
        (dict(), 5000),
        (dict(tilt=25, roll=5, height=2500), 5000),
        (dict(focal=800, tilt=15, roll=-8, height=1800), 3500),
        (dict(focal=2400, tilt=5), 9000),
    ],
)
def test_a_walker_walks_where_the_walker_walked(camera, distance):
    """Noisy keypoints, exact lifting: centimetres, a degree, and feet that stand."""
    walk = generate(1, "walk") - (0, 0, distance)
    room = watch(make_camera(**camera), [walk])
    assert np.ptp(walk[:, 0], axis=0).max() > 3000, "the walker gets somewhere"
    world = place(room)
    mean, centred = path_error_mm(room, world)
    assert mean < 40 and centred < 35
    assert foot_drift_mm_s(room, world) < 10
    assert np.degrees(abs(world.camera.tilt - room.camera.tilt)) < 1
    assert np.degrees(abs(world.camera.roll - room.camera.roll)) < 1
    assert abs(world.camera.height - room.camera.height) < 60
    # World axes and camera agree: what is in the room projects to where it was seen.
    again = world.camera.project(world.people[0].poses)
    assert np.linalg.norm(again - room.people[0].pixels, axis=-1).mean() < 0.02 * 1080


@pytest.mark.parametrize("action, seed", [("walk", 0), ("run", 2), ("squat", 3), ("talk", 4)])
def test_errors_of_the_lifter_become_no_sliding(action, seed):
    """Lifted joints that are off by 40 mm per axis and shrunk depths: a path in decimetres."""
    motion = generate(seed, action, 3.0) - (0, 0, 6000)
    room = watch(make_camera(), [motion], lifting_mm=40, shrink=0.9, seed=seed)
    world = place(room)
    mean, centred = path_error_mm(room, world)
    assert mean < 350 and centred < 200
    assert foot_drift_mm_s(room, world) < (80 if action == "run" else 15)
    assert np.degrees(abs(world.camera.tilt - room.camera.tilt)) < 6


def test_an_unknown_focal_length_is_found_from_a_walk_and_admitted_otherwise():
    camera = make_camera(focal=1150, tilt=15)
    guess = guess_focal(camera.image_size)
    assert guess.pixels > 1.4 * camera.focal_px, "the guess is far off, and the walk mends it"
    walk = place(watch(camera, [generate(1, "walk") - (0, 0, 5000)]), guess)
    assert abs(np.log(walk.camera.focal_px / camera.focal_px)) < 0.06
    assert walk.camera.focal_deviation < 0.12
    stand = place(watch(camera, [generate(4, "wave", 3.0) - (0, 0, 5000)], lifting_mm=30), guess)
    assert stand.camera.focal_deviation > walk.camera.focal_deviation
    off = abs(np.log(stand.camera.focal_px / camera.focal_px))
    assert off < 3 * stand.camera.focal_deviation
    # Across the image nothing depends on the focal length.
    assert path_error_mm(watch(camera, [generate(4, "wave", 3.0) - (0, 0, 5000)]), stand)[1] < 150


@pytest.mark.parametrize(
    "camera, action, distance",
    [
        (dict(focal=6000, tilt=3, height=1600), "talk", 20000),
        (dict(focal=1150, tilt=10), "wave", 5000),
        (dict(focal=1700, tilt=4, height=1800), "walk across", 6000),
    ],
)
def test_a_focal_length_that_the_video_cannot_tell_is_assumed_aloud(camera, action, distance):
    """Through a telephoto lens or not: who stands, or walks across the image, is not estimated."""
    camera = make_camera(**camera)
    motion = generate(1 if "walk" in action else 4, action.split()[0], 4.0)
    if "across" in action:
        way = motion[-1, 0] - motion[0, 0]
        c, s = np.array([way[0], way[2]]) / np.hypot(way[0], way[2])
        motion = motion @ np.array([[c, 0, -s], [0, 1, 0], [s, 0, c]])
        assert np.ptp(motion[:, 0, 2]) < 0.2 * np.ptp(motion[:, 0, 0])
    room = watch(camera, [motion - (0, 0, distance)], lifting_mm=40, shrink=0.8)
    guess = guess_focal(camera.image_size)
    world = place(room, guess)
    assert world.camera.focal_px == guess.pixels and world.camera.focal_source == "assumed"
    assert world.camera.focal_deviation == GUESS_DEVIATION
    assert "the video does not tell it (nobody comes much nearer" in world.notes[0]
    assert world.camera.height > 0 and np.degrees(abs(world.camera.tilt - camera.tilt)) < 6
    # Distances are off by the factor of the focal length; nothing else is.
    factor = guess.pixels / camera.focal_px
    apart = np.median(np.linalg.norm(world.people[0].poses[:, 0], axis=-1)) / distance
    assert 0.7 * factor < apart < 1.3 * factor


def test_a_camera_below_the_ground_is_no_estimate(monkeypatch):
    """Lifted depths that contradict the image, while the person comes nearer."""
    room = watch(make_camera(tilt=5), [generate(1, "walk") - (0, 0, 5000)])
    found, asked = place_module._find, []

    def below(people, image_size, fps, focal, scale_deviation):
        asked.append(focal.source)
        world = found(people, image_size, fps, focal, scale_deviation)
        height = -500.0 if focal.source == "estimated" else world.camera.height
        return dataclasses.replace(world, camera=dataclasses.replace(world.camera, height=height))

    monkeypatch.setattr(place_module, "_find", below)
    world = place(room, guess_focal(room.camera.image_size))
    assert asked == ["estimated", "assumed"] and world.camera.height > 0
    assert "below the ground" in world.notes[0]


def test_several_people_stand_where_they_stand_on_one_ground():
    camera = make_camera(tilt=12, height=2000)
    motions = [
        generate(1, "walk") - (0, 0, 6000),
        generate(4, "talk") - (1500, 0, 5000),
        generate(5, "wave") - (-1800, 0, 8000),
    ]
    room = watch(camera, motions, lifting_mm=20)
    world = place(room)
    for person in range(3):
        assert path_error_mm(room, world, person)[0] < 300
        low = world.people[person].poses[:, [3, 6], 1].min(1)
        assert abs(np.median(low) - 70) < 80, "on the ground, not under or over it"


def test_the_common_ground_tells_a_child_from_an_adult():
    """Both were taken for adults; from above, the child's feet say how near the child is."""
    camera = make_camera(tilt=25, height=3000)
    child = 0.8 * generate(1, "walk")
    room = watch(camera, [generate(6, "walk") - (0, 0, 6000), child - (500, 0, 5500)])
    room.people[1].poses[:] /= 0.8
    world = place(room, deviation=0.1)
    ratio = world.people[1].scale / world.people[0].scale
    assert 0.75 < ratio < 0.9


def test_gaps_hold_nobody_and_filled_in_joints_do_not_pull():
    room = watch(make_camera(), [generate(1, "walk") - (0, 0, 5000)])
    person = room.people[0]
    person.segments[:] = [(5, 90), (120, 180)]
    for array in (person.pixels, person.poses):
        array[:5] = array[90:120] = np.nan
    person.confidence[30:45] = 0
    share = np.linspace(0, 1, 15)[:, None, None]
    person.pixels[30:45] = (1 - share) * person.pixels[30] + share * person.pixels[44]
    world = place(room)
    poses = world.people[0].poses
    there = np.isfinite(poses).all((1, 2))
    np.testing.assert_array_equal(np.flatnonzero(~there), [*range(5), *range(90, 120)])
    away = np.linalg.norm(poses[there, 0] - room.truth[0][there, 0], axis=-1)
    assert away.max() < 300 and np.median(away) < 60


def test_nobody_with_feet_still_gets_a_place():
    """Feet out of the image: the ground is a guess that is said, the distance is not."""
    room = watch(make_camera(), [generate(4, "talk", 3.0) - (0, 0, 4000)])
    room.people[0].confidence[:, [2, 3, 5, 6]] = 0
    world = place(room)
    assert not world.people[0].planted.any()
    assert any("no planted foot" in note for note in world.notes)
    assert path_error_mm(room, world)[0] < 400


@pytest.mark.parametrize(
    "words, pixels",
    [
        ("  com.apple.quicktime.camera.focal_length.35mm_equivalent: 26\n", 26),
        ("    focal_length_35mm_film: 28.0", 28),
        ("  35mm equivalent focal length: 50", 50),
        ("  creation_time: 2026-01-01T00:00:00Z\n  encoder: Lavf", None),
        ("  focal_length_35mm: 0", None),
    ],
)
def test_focal_length_of_metadata(words, pixels):
    found = focal_from_metadata(words, (1920, 1080))
    if pixels is None:
        assert found is None
    else:
        assert found.pixels == pytest.approx(pixels * np.hypot(1920, 1080) / np.hypot(36, 24))
        assert "from the file" in found.source


def test_focal_length_is_read_from_a_video(tmp_path):
    imageio_ffmpeg = pytest.importorskip("imageio_ffmpeg", reason="needs imageio-ffmpeg")
    import subprocess

    from posemamba_jax.predict.world.results import _find_focal

    key = "com.apple.quicktime.camera.focal_length.35mm_equivalent=26"
    path = tmp_path / "phone.mov"
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-v", "error", "-f", "lavfi"]
    command += ["-i", "color=s=64x48:d=0.2", "-movflags", "use_metadata_tags", "-metadata", key]
    command += [path]
    subprocess.run(list(map(str, command)), check=True)
    focal = _find_focal(None, str(path), (64, 48))
    assert focal.pixels == pytest.approx(26 * 80 / np.hypot(36, 24))
    assert _find_focal(100.0, str(path), (64, 48)).source == "given"


@pytest.fixture(scope="module")
def walk_room():
    return watch(make_camera(size=(1000, 1000)), [generate(1, "walk", 4.0) - (0, 0, 6000)])


def lift_of(room):
    """Makes a model that knows the truth: finds windows in the room's keypoints by their first
    frame.
    """
    person = room.people[0]
    flat = normalise(person.pixels, room.camera.image_size)
    size = person.pixels.shape[0]

    def predict(batch):
        windows = []
        for window in batch:
            start = int(np.abs(flat[: size - WINDOW + 1] - window[0]).sum((1, 2)).argmin())
            windows.append(person.poses[start : start + WINDOW] / 1000)
        return np.stack(windows).astype(np.float32)

    return predict


def test_the_program_places_people_and_writes_it_everywhere(tmp_path, walk_room, capsys):
    room = walk_room
    path = writers.array(tmp_path / "k.npy", room.people[0].pixels)
    out = tmp_path / "out"
    options = PredictOptions(
        str(path), checkpoint="fake", out=str(out), image_size="1000x1000", joint_set="h36m17",
        fps=30.0, flip=False, focal_px=room.camera.focal_px,
    )  # fmt: skip
    run(options, load=lambda _: (lift_of(room), WINDOW))
    said = capsys.readouterr().out
    assert f"an adult of {DEFAULT_HEIGHT_MM / 10:.0f} cm is assumed" in said
    assert "focal length 1150 px, given" in said
    (npz,) = out.glob("*.npz")
    with np.load(npz) as file:
        found = dict(file)
    world = found["world_poses"]
    assert world.shape == (120, 17, 3) and found["planted"].shape == (120, 2)
    assert str(found["units"]) == "half the image width", "the model's own output stays as it is"
    # Of the assumed size, so the room is the true one but for one factor.
    leg = [
        np.median(np.linalg.norm(poses[:, 4] - poses[:, 5], axis=-1))
        for poses in (world, room.truth[0])
    ]
    factor = leg[0] / leg[1]
    apart = np.linalg.norm(world[:, 0] / factor - room.truth[0][:, 0], axis=-1)
    assert 0.8 < factor < 1.25 and apart.mean() < 80

    document = json.loads(npz.with_suffix(".json").read_text())
    np.testing.assert_allclose(document["frames"][7]["world_pose"], world[7], atol=0.06)
    assert document["camera"]["focal_px"] == 1150
    local = (world[7] - found["camera_position"]) @ found["camera_rotation"].T
    pixels = local[:, :2] / local[:, 2:] * 1150 + 500
    assert np.linalg.norm(pixels - room.people[0].pixels[7], axis=-1).mean() < 15

    motion = read_bvh(npz.with_suffix(".bvh"), mm_per_unit=1000)
    root = motion.positions[:, 0]
    np.testing.assert_allclose(root, world[:, 0], atol=40)
    ankles = motion.positions[:, motion.hierarchy.names.index("LeftLeg end")]
    speed = np.linalg.norm(np.diff(ankles, axis=0), axis=-1) * 30
    held = found["planted"][1:, 0] & found["planted"][:-1, 0]
    assert speed[held].mean() < 15 and np.ptp(root, axis=0).max() > 2000


def test_a_given_height_is_the_height_in_the_room(tmp_path, walk_room):
    path = writers.array(tmp_path / "k.npy", walk_room.people[0].pixels)
    lengths = []
    for options in ({"height_mm": 1800.0}, {"bone_length": "l_hip-l_knee=500"}):
        out = tmp_path / next(iter(options))
        run(
            PredictOptions(
                str(path), checkpoint="fake", out=str(out), image_size="1000x1000", fps=30.0,
                joint_set="h36m17", flip=False, focal_px=1150.0, outputs="npz", **options,
            ),
            load=lambda _: (lift_of(walk_room), WINDOW),
        )  # fmt: skip
        (npz,) = out.glob("*.npz")
        with np.load(npz) as file:
            poses = file["world_poses"]
            assert str(file["size"]) == "as given"
        lengths.append([np.median(np.linalg.norm(poses[:, a] - poses[:, b], axis=-1))
                        for a, b in ((4, 5), (5, 6))])  # fmt: skip
    assert sum(lengths[0]) == pytest.approx(0.491 * 1800, rel=0.02)
    assert lengths[1][0] == pytest.approx(500, rel=0.02)


def test_poses_without_extent_get_no_world_and_a_reason(walk_room):
    frames = 30
    flat = np.zeros((frames, 17, 3), np.float32)
    result = Result(
        track=7, poses_3d=flat, poses_2d=np.ones((frames, 17, 3), np.float32),
        predicted=np.ones(frames, bool), observed=np.ones(frames, bool),
        observed_joints=np.ones((frames, 17), bool), segments=[(0, frames)],
        root_translation=np.zeros((frames, 3), np.float32), frame_numbers=np.arange(frames),
        fps=30.0, image_size=(640, 480), units="half the image width",
        mm_per_unit=np.full(frames, np.nan, np.float32), source="a", source_format="array",
        joint_set="h36m17",
    )  # fmt: skip
    results, notes = add_world([result])
    assert results == [result] and results[0].camera is None
    assert len(notes) == 1 and "no world: person 7" in notes[0]


@pytest.mark.parametrize("name, bounds", [("02/02_01", (130, 110)), ("02/02_05", (120, 80))])
def test_motion_capture_before_a_known_camera(mocap_dir, name, bounds):
    """A walk and punches, lifted joints off by 30 mm per axis, from two sides."""
    motion = read_mocap(mocap_dir / f"{name}.amc")[:200]
    for turn in (0.0, 90.0):
        c, s = np.cos(np.radians(turn)), np.sin(np.radians(turn))
        turned = motion @ np.array([[c, 0, -s], [0, 1, 0], [s, 0, c]]) - (0, 0, 5500)
        room = watch(make_camera(tilt=12), [turned], lifting_mm=30)
        world = place(room)
        mean, centred = path_error_mm(room, world)
        assert mean < bounds[0] and centred < bounds[1]
        assert foot_drift_mm_s(room, world, still_mm_s=100) < 25
