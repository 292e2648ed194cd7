"""Real networks on real videos: four cameras have to agree where a person's joints are."""

import re
import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest
import real_files
from rich.console import Console

from posemamba_jax.predict import from_video
from posemamba_jax.predict.detect import tracking
from posemamba_jax.predict.detect.decode import open_video
from posemamba_jax.predict.detect.video import find_people
from posemamba_jax.predict.keypoints import read_keypoints, with_image_size
from posemamba_jax.predict.options import PredictOptions
from posemamba_jax.predict.run import load_predict, run

# How many frames each camera began late, and the landmarks from shoulders to ankles.
LATE = (0, 2, 4, 1)
BODY = [11, 12, 13, 14, 15, 16, 23, 24, 25, 26, 27, 28]


def read_cameras(path):
    """Cameras of Qualisys: intrinsics in 1/64 pixel, y and z reversed, the floor at z = 0.

    Returns:
      (4, 3, 4) projections, (4, 3, 3) rotations and (4, 3) places in millimetres.
    """
    projections, rotations, places = [], [], []
    for camera in ElementTree.parse(path).getroot().findall("cameras/camera"):
        t, i = camera.find("transform").attrib, camera.find("intrinsic").attrib
        rows = [[float(t[f"r{a}{b}"]) for b in "123"] for a in "123"]
        rotation = np.diag([1, -1, -1]) @ np.array(rows)
        place = np.array([float(t[axis]) for axis in "xyz"])
        focal = [float(i[f"focalLength{axis}"]) / 64 for axis in "UV"]
        centre = [float(i[f"centerPoint{axis}"]) / 64 for axis in "UV"]
        intrinsic = np.array([[focal[0], 0, centre[0]], [0, focal[1], centre[1]], [0, 0, 1]])
        projections.append(intrinsic @ np.column_stack([rotation, -rotation @ place]))
        rotations.append(rotation)
        places.append(place)
    return np.array(projections), np.array(rotations), np.array(places)


def triangulation_residual(points, cameras) -> np.ndarray:
    """(views, frames, joints) pixels between points (views, frames, joints, 2) and the best 3D."""
    rows = points[..., None] * cameras[:, None, None, None, 2] - cameras[:, None, None, :2]
    system = np.moveaxis(rows, 0, 2).reshape(*points.shape[1:3], -1, 4)
    places = np.linalg.svd(system)[2][..., -1, :]
    seen = np.einsum("vij,tkj->vtki", cameras, places)
    return np.linalg.norm(seen[..., :2] / seen[..., 2:] - points, axis=-1)


@pytest.fixture(scope="module")
def engine_of():
    """Engines of the real networks by model, by LiteRT, which starts at once."""
    pytest.importorskip("ai_edge_litert", reason="needs pip install ai-edge-litert")
    networks = str(real_files.need(*real_files.NETWORKS))

    def make(model):
        options = PredictOptions(
            "", detector="litert", detector_model=model, detector_weights=networks
        )
        return options, from_video.prepare_engine(options, Console(quiet=True))

    return make


def find(engine_of, model, path, out, **options):
    """The keypoint file of a video, as predict.py finds it, and its remarks."""
    defaults, engine = engine_of(model)
    options = PredictOptions(**{**vars(defaults), "keypoints": str(path), **options})
    out.mkdir(exist_ok=True)
    return from_video.find_keypoints(options, open_video(path), engine, out, Console(quiet=True))


@pytest.mark.slow
@pytest.mark.parametrize("model, limit", [("heavy", 13.5), ("full", 16.0)])
def test_four_cameras_agree(tmp_path, monkeypatch, engine_of, model, limit):
    """Mean residual of triangulation in pixels of 1080 x 1920; `full` needs its flips mended."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    wheel = real_files.need(*real_files.VIDEOS["pose2sim"])
    member = "Pose2Sim/Demo_SinglePerson/calibration/Calib.qca.txt"
    cameras, *poses = read_cameras(real_files.unpack(wheel, member, tmp_path))
    points, notes = [], []
    for number, late in enumerate(LATE, start=1):
        video = real_files.camera(number, tmp_path)
        path, more = find(engine_of, model, video, tmp_path / f"out{number}")
        keypoints = with_image_size(read_keypoints(path), None)
        assert {d.track for d in keypoints.detections} == {1} and keypoints.num_frames == 100
        assert len(keypoints.detections) == 100
        points.append(np.array([d.keypoints[BODY, :2] for d in keypoints.detections])[late:][:96])
        notes += more
    residual = triangulation_residual(np.array(points, np.float64), cameras)
    assert residual.mean() < limit, f"{residual.mean():.1f} px"
    exchanged = [note for note in notes if re.search("left and right were exchanged", note)]
    assert len(exchanged) == (0 if model == "heavy" else 1)
    if model == "heavy":
        check_rooms(tmp_path, *poses)


def check_rooms(folder, rotations, places):
    """Where the installed model's people are agrees with how two of the cameras stood."""
    lifter = load_predict(None)
    for number in (1, 2):
        keypoints, out = folder / f"out{number}" / "keypoints.json", folder / f"room{number}"
        options = PredictOptions(str(keypoints), out=str(out), outputs="npz")
        run(options, load=lambda _: lifter)
        with np.load(out / "person_1.npz") as file:
            found = dict(file)
        # Nobody comes nearer, so the focal length (1674 to 1682 pixels) is not estimated.
        assert str(found["camera_focal_source"]) == "assumed"
        assert abs(float(found["camera_focal_px"]) / 1678 - 1) < 0.06
        view, up = rotations[number - 1][2], rotations[number - 1] @ (0, 0, 1)
        rotation = found["camera_rotation"]
        own_view, own_up = rotation[2], rotation @ (0, 1, 0)
        tilts = np.degrees(np.arcsin([-view[2], -own_view[1]]))
        rolls = np.degrees([np.arctan2(-up[0], -up[1]), np.arctan2(-own_up[0], -own_up[1])])
        assert abs(np.diff(tilts)) < 10 and abs(np.diff(rolls)) < 6, (tilts, rolls)
        assert abs(found["camera_position"][1] - places[number - 1][2]) < 500
        still = found["planted"][1:] & found["planted"][:-1]
        steps = np.diff(found["world_poses"][:, [6, 3]], axis=0)
        drift = np.linalg.norm(steps, axis=-1) * float(found["fps"])
        assert still.sum() > 30 and np.nanmean(drift[still]) < 25, drift[still]


@pytest.mark.slow
def test_people_on_a_real_video_keep_their_identity(tmp_path, monkeypatch, engine_of):
    """A woman walks from right to left below a man on a roof, and comes to stand under him."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    wheel = real_files.need(*real_files.VIDEOS["sports2d"])
    video = open_video(real_files.unpack(wheel, "Sports2D/Demo/demo.mp4", tmp_path))
    _, engine = engine_of("full")
    found = find_people(video, engine, lambda _: None)
    tracks = tracking.follow(found, video.fps)
    people, _ = tracking.choose(tracks, 2, video.size, 0.5 * video.fps)
    man, woman = sorted(people, key=lambda track: track.frames[0])
    assert len(man.frames) > 10 and (man.regions[:, 1] < 450).all()
    assert woman.frames[-1] - woman.frames[0] > 140 and (woman.regions[:, 1] > 600).all()
    assert (np.diff(woman.regions[:, 0]) < 20).all()
    assert woman.regions[0, 0] > 1400 and woman.regions[-1, 0] < 300
