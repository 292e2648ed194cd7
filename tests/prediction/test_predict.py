"""predict.py from end to end: every format in, every format out, mistakes told in one line."""

import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import jax
import numpy as np
import pytest
import writers
from moving_people import IMAGE_SIZE, WINDOW, fake_predict, walking, watch_mocap

from posemamba_jax.data.formats.bvh import read_bvh
from posemamba_jax.errors import UserError
from posemamba_jax.model import PoseMamba, PoseMambaConfig
from posemamba_jax.predict.export import WRITERS
from posemamba_jax.predict.export.bvh import fit_fixed_lengths, to_y_up
from posemamba_jax.predict.lift import normalise
from posemamba_jax.predict.options import PredictOptions, parse_arguments
from posemamba_jax.predict.run import run
from posemamba_jax.training.checkpoint import save_model

ROOT = Path(__file__).parents[2]


def predict(path, out, **options):
    """Runs everything but the checkpoint, with a model that keeps x and y; arrays by person.

    Its poses are no bodies, so nobody is looked for in a room; `test_world` does that.
    """
    options = {"trajectory": "none", **options}
    options = PredictOptions(str(path), checkpoint="fake", out=str(out), **options)
    run(options, load=lambda _: (fake_predict, WINDOW))
    found = {}
    for file in sorted(Path(out).glob("*.npz")):
        with np.load(file) as arrays:
            found[int(arrays["track"])] = dict(arrays)
    return found


def expected(poses, joint_set, image_size=IMAGE_SIZE):
    """What the stand-in model makes of these pixels."""
    lifted = fake_predict(normalise(writers.expected_h36m(poses, joint_set), image_size))
    return lifted - lifted[:, :1]


def test_people_gaps_and_frame_count(tmp_path, people, capsys):
    path = writers.alphapose(tmp_path / "a.json", people)
    found = predict(path, tmp_path / "out", image_size="640x480", fps=25, max_gap=4)
    assert sorted(found) == [1, 2]
    for id, result in found.items():
        assert len(result["poses_3d"]) == 40 and result["fps"] == 25
        seen = np.isfinite(people[id]).all((1, 2))
        np.testing.assert_array_equal(result["observed"], seen)
        np.testing.assert_array_equal(result["predicted"], seen)
        np.testing.assert_array_equal(np.isfinite(result["poses_3d"]).all((1, 2)), seen)
        wanted = expected(people[id], "halpe26")
        np.testing.assert_allclose(result["poses_3d"], wanted, atol=1e-4)
    assert found[2]["segments"].tolist() == [[0, 10], [15, 40]]
    printed = capsys.readouterr().out
    assert "alphapose, halpe26, 40 frames" in printed and "2 people" in printed

    bridged = predict(path, tmp_path / "bridged", image_size="640x480", fps=25, track="2")
    assert list(bridged) == [2] and bridged[2]["predicted"].all()
    assert bridged[2]["observed"].sum() == 35
    assert (bridged[2]["poses_2d"][10:15, :, 2] == 0).all()


def test_every_output_has_every_frame(tmp_path):
    path = writers.mediapipe(tmp_path / "m.json", {1: walking(33)}, IMAGE_SIZE)
    predict(path, tmp_path / "out", height_mm=1750.0)
    out = tmp_path / "out"
    assert sorted(p.name for p in out.iterdir()) == [
        f"person_1.{suffix}" for suffix in ("angles.csv", "bvh", "csv", "json", "npz")
    ]
    assert len(json.loads((out / "person_1.json").read_text())["frames"]) == 33
    assert len((out / "person_1.csv").read_text().splitlines()) == 34
    assert len(read_bvh(out / "person_1.bvh", mm_per_unit=1000).positions) == 33


def test_scale_and_trajectory(tmp_path):
    path = writers.array(tmp_path / "k.npy", walking(60))
    plain = predict(path, tmp_path / "a", image_size="640x480")[1]
    assert plain["units"] == "half the image width" and np.isnan(plain["mm_per_unit"]).all()
    assert (plain["root_translation"] == 0).all()
    scaled = predict(path, tmp_path / "b", image_size="640x480", height_mm=1800.0)[1]
    assert scaled["units"] == "mm"
    ratio = scaled["mm_per_unit"][:, None, None]
    np.testing.assert_allclose(scaled["poses_3d"], plain["poses_3d"] * ratio, rtol=1e-4, atol=1e-2)
    thigh = np.linalg.norm(scaled["poses_3d"][:, 4] - scaled["poses_3d"][:, 5], axis=-1)
    shank = np.linalg.norm(scaled["poses_3d"][:, 5] - scaled["poses_3d"][:, 6], axis=-1)
    assert 780 < np.median(thigh) + np.median(shank) < 980
    by_bone = predict(path, tmp_path / "c", image_size="640x480", bone_length="l_hip-l_knee=440")[1]
    thigh = np.linalg.norm(by_bone["poses_3d"][:, 4] - by_bone["poses_3d"][:, 5], axis=-1)
    assert np.median(thigh) == pytest.approx(440, rel=0.01)
    moving = predict(path, tmp_path / "d", image_size="640x480", trajectory="image")[1]
    root = normalise(walking(60), IMAGE_SIZE)[:, 0]
    np.testing.assert_allclose(moving["root_translation"][:, :2], root, atol=1e-5)


def test_smoothing_is_off_unless_asked_for(tmp_path):
    poses = walking(60) + np.random.default_rng(0).normal(0, 1, (60, 17, 2))
    path = writers.array(tmp_path / "k.npy", poses)
    plain = predict(path, tmp_path / "a", image_size="640x480")[1]["poses_3d"]
    smooth = predict(path, tmp_path / "b", image_size="640x480", smooth=True)[1]["poses_3d"]
    np.testing.assert_allclose(plain, expected(poses, "h36m17"), atol=1e-4)
    assert (
        np.abs(np.diff(smooth, 2, axis=0)).mean() < 0.7 * np.abs(np.diff(plain, 2, axis=0)).mean()
    )


@pytest.fixture
def video(tmp_path):
    """50 frames of 128x96 at 25 per second."""
    imageio_ffmpeg = pytest.importorskip("imageio_ffmpeg", reason="needs imageio-ffmpeg")
    path = tmp_path / "clip.mp4"
    writer = imageio_ffmpeg.write_frames(str(path), (128, 96), fps=25, macro_block_size=1)
    writer.send(None)
    for t in range(50):
        writer.send(np.full((96, 128, 3), 5 * t, np.uint8).tobytes())
    writer.close()
    return path


def test_video_gives_size_rate_and_frames(tmp_path, video):
    small = walking(20) / 5
    frames = np.full((30, 17, 2), np.nan)
    frames[5:25] = small
    path = writers.alphapose(tmp_path / "a.json", {1: frames})
    result = predict(path, tmp_path / "out", video=str(video))[1]
    assert result["image_size"].tolist() == [128, 96] and result["fps"] == 25
    assert result["predicted"].tolist() == [False] * 5 + [True] * 20 + [False] * 25
    assert result["frame_numbers"].tolist() == list(range(50))
    # MMPose's demo counts from 1.
    full = np.concatenate([small, small, small[:10]])
    path = writers.mmpose(tmp_path / "m.json", {1: full})
    result = predict(path, tmp_path / "out2", video=str(video))[1]
    assert result["frame_numbers"].tolist() == list(range(1, 51))
    with pytest.raises(UserError, match="has 50 frames"):
        path = writers.alphapose(tmp_path / "b.json", {1: np.concatenate([full, full])})
        predict(path, tmp_path / "out3", video=str(video))


def test_render_is_called_with_what_was_predicted(tmp_path, people, monkeypatch):
    pytest.importorskip("imageio_ffmpeg", reason="the renderer needs imageio-ffmpeg")
    calls = []
    monkeypatch.setattr(
        "posemamba_jax.pictures.render.render",
        lambda path, poses, **rest: calls.append((poses, rest)) or path,
    )
    path = writers.alphapose(tmp_path / "a.json", people)
    predict(path, tmp_path / "out", image_size="640x480", fps=25, max_gap=4, render="html,mp4")
    poses, rest = calls[0]
    assert len(calls) == 2 and poses.shape == (2, 40, 17, 3)
    assert rest["poses_2d"].shape == (2, 40, 17, 3) and rest["mask"].shape == (2, 40)
    assert rest["fps"] == 25 and rest["image_size"] == IMAGE_SIZE
    # As the files are called.
    assert rest["track_names"] == ["person 1", "person 2"] and rest["title"] == "a.json"
    assert {"person_1.npz", "person_2.npz"} <= {p.name for p in (tmp_path / "out").iterdir()}


def test_a_page_is_rendered(tmp_path):
    pytest.importorskip("imageio_ffmpeg", reason="the renderer needs imageio-ffmpeg")
    path = writers.array(tmp_path / "k.npy", walking(12))
    predict(path, tmp_path / "out", image_size="640x480", outputs="npz", render="html")
    assert (tmp_path / "out" / "poses.html").stat().st_size > 1000


@pytest.mark.parametrize(
    "options, words",
    [
        ({}, ["--image_size"]),
        ({"image_size": "0x480"}, ["--image_size", "WIDTHxHEIGHT"]),
        ({"image_size": "640"}, ["--image_size", "WIDTHxHEIGHT"]),
        ({"image_size": "640x480", "track": "9"}, ["--track 9"]),
        ({"image_size": "640x480", "overlap": 27}, ["--overlap 27"]),
        ({"image_size": "640x480", "max_gap": -1}, ["--max_gap"]),
        ({"image_size": "640x480", "batch_size": 0}, ["--batch_size"]),
        ({"image_size": "640x480", "fps": -1.0}, ["--fps"]),
        ({"image_size": "640x480", "outputs": "fbx"}, ["--outputs fbx"]),
        ({"image_size": "640x480", "render": "avi"}, ["--render avi"]),
        ({"image_size": "640x480", "height_mm": 1.8}, ["1.8 mm"]),
        ({"image_size": "640x480", "bone_length": "thigh"}, ["--bone_length"]),
        ({"image_size": "640x480", "bone_length": "thigh=3"}, ["thigh"]),
        ({"image_size": "640x480", "height_mm": 1.0, "bone_length": "a=1"}, ["one of them"]),
        ({"video": "/nowhere/clip.mp4"}, ["/nowhere/clip.mp4: no such video"]),
        ({"image_size": "640x480", "joint_set": "posetrack18"}, ["posetrack18", "26"]),
    ],
)
def test_mistakes(tmp_path, people, options, words):
    if "video" in options:
        pytest.importorskip("imageio_ffmpeg", reason="needs imageio-ffmpeg")
    path = writers.alphapose(tmp_path / "a.json", people)
    with pytest.raises(UserError) as caught:
        predict(path, tmp_path / "out", **options)
    assert "\n" not in str(caught.value)
    for word in words:
        assert word in str(caught.value)


def test_output_folder_that_is_a_file(tmp_path, people):
    path = writers.alphapose(tmp_path / "a.json", people)
    with pytest.raises(UserError, match="a.json"):
        predict(path, path, image_size="640x480")


def test_the_python_example_of_the_docs_runs(tmp_path, people, monkeypatch):
    text = (ROOT / "docs" / "prediction.md").read_text()
    example = textwrap.dedent(text.split("## From Python\n")[1].split("\n## ")[0])
    monkeypatch.chdir(tmp_path)
    writers.alphapose(tmp_path / "alphapose-results.json", people)
    config = PoseMambaConfig(num_frames=WINDOW)
    monkeypatch.setattr("posemamba_jax.training.checkpoint.load_model", lambda _: (config, None))
    monkeypatch.setattr("posemamba_jax.predict.lift.make_predict", lambda *_: fake_predict)
    names = {}
    exec(example, names)
    wanted = expected(people[1], "halpe26", (1920, 1080))
    np.testing.assert_allclose(names["poses_3d"], wanted, atol=1e-4)


def test_command_line_types(capsys):
    with pytest.raises(SystemExit):
        parse_arguments(["--help"])
    helped = capsys.readouterr().out
    assert all(name in helped for name in WRITERS)
    options = parse_arguments(["k.json", "--fps", "25", "--flip", "false", "--track", "3"])
    assert (options.fps, options.flip, options.track) == (25.0, False, "3")
    for argv, word in (
        (["k.json", "--fps", "fast"], "--fps"),
        (["k.json", "--colour", "red"], "--colour"),
        (["k.json", "--format", "xml"], "--format"),
        ([], "keypoint file"),
    ):
        with pytest.raises(UserError, match=word) as caught:
            parse_arguments(argv)
        assert "\n" not in str(caught.value)


def program(*arguments, **environment):
    paths = os.pathsep.join([str(ROOT), str(ROOT / "kernels")])
    return subprocess.run(
        [sys.executable, str(ROOT / "predict.py"), *map(str, arguments)],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": paths, **environment},
    )


def test_program_lifts_with_a_checkpoint_and_tells_mistakes(tmp_path, data_dir, own_lines):
    config = PoseMambaConfig(dim=8, depth=1, num_frames=9, state_size=2)
    variables = jax.jit(PoseMamba(config).init)(
        jax.random.key(0), np.zeros((1, 9, 17, 2), np.float32)
    )
    save_model(tmp_path / "model", config, variables["params"])
    sample = data_dir / "keypoints" / "mmpose.json"
    done = program(
        sample, "--checkpoint", tmp_path / "model", "--out", tmp_path / "out",
        "--image_size", "640x480", "--fps", "30", LC_ALL="C",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "mmpose, coco17, 3 frames" in done.stdout
    names = {p.name for p in (tmp_path / "out").iterdir()}
    assert {"person_1.npz", "person_2.bvh"} <= names

    done = program(sample, "--checkpoint", "pretrained:none")
    assert done.returncode == 2
    (line,) = own_lines(done.stderr)
    assert line.startswith("error: pretrained:none: no such model; installed: ")


def test_folders_that_are_no_checkpoints(tmp_path, data_dir):
    sample = str(data_dir / "keypoints" / "mmpose.json")
    for folder in (tmp_path / "none", tmp_path):
        with pytest.raises(UserError, match=str(folder)):
            run(PredictOptions(sample, checkpoint=str(folder), image_size="640x480"))


@pytest.fixture(scope="module")
def recording(mocap_dir):
    """A real walk seen by a camera, in pixels of a 1000x1000 image, and the truth."""
    (clip,) = watch_mocap(mocap_dir, ("02/02_01.amc",), cameras=1)
    return (clip["poses_2d"][..., :2] + 1) * 500, clip["poses_3d_mm"]


@pytest.mark.parametrize(
    "format, joint_set",
    [
        ("alphapose", "halpe26"),
        ("openpose", "body25"),
        ("mmpose", "coco17"),
        ("mediapipe", "mediapipe33"),
        ("videopose3d", "coco17"),
        ("array", "h36m17"),
    ],
)
def test_real_motion_goes_the_whole_way_in_every_format(tmp_path, recording, format, joint_set):
    """Real 2D motion as each detector writes it, lifted by the stand-in, exported and read back."""
    pixels, _ = recording
    path = tmp_path / ("files" if format == "openpose" else "keypoints.npz")
    if format == "array":
        path = writers.array(tmp_path / "k.npy", pixels)
    elif format == "videopose3d":
        writers.videopose3d(path, pixels, (1000, 1000))
    elif format == "mediapipe":
        writers.mediapipe(path, {5: pixels}, (1000, 1000), fps=50)
    else:
        getattr(writers, format)(path, {5: pixels})
    (result,) = predict(
        path, tmp_path / "out", image_size="1000x1000", fps=50, height_mm=1750.0
    ).values()
    assert result["source_format"] == format and result["joint_set"] == joint_set
    assert len(result["poses_3d"]) == len(pixels) and result["observed"].all()
    wanted = expected(pixels, joint_set, (1000, 1000)) * result["mm_per_unit"][:, None, None]
    np.testing.assert_allclose(result["poses_3d"], wanted, atol=0.5)

    (bvh,) = (tmp_path / "out").glob("*.bvh")
    motion = read_bvh(bvh, mm_per_unit=1000)
    assert motion.fps == pytest.approx(50) and len(motion.positions) == len(pixels)
    names = motion.hierarchy.names
    fitted = to_y_up(fit_fixed_lengths(result["poses_3d"]))
    for joint, name in (
        (3, "RightLeg end"),
        (9, "Head"),
        (13, "LeftForeArm end"),
        (14, "RightArm"),
    ):
        apart = np.linalg.norm(motion.positions[:, names.index(name)] - fitted[:, joint], axis=-1)
        assert apart.max() < 1.0


def test_true_motion_survives_scaling_and_bvh(tmp_path, recording):
    """With a perfect model, height and bone fitting keep real motion close to the truth."""
    pixels, truth = recording
    relative = truth / 1000  # any unit will do

    def perfect(batch):
        # Windows are found by their first frame, mirrored ones too.
        flat = normalise(pixels, (1000, 1000))
        results = []
        for window in batch:
            for sign in (1, -1):
                first = window[0] if sign > 0 else mirror(window[0])
                start = int(np.abs(flat - first).sum((1, 2)).argmin())
                if np.allclose(flat[start], first, atol=1e-5):
                    pose = relative[start : start + WINDOW]
                    results.append(pose if sign > 0 else mirror(pose))
                    break
        return np.stack(results).astype(np.float32)

    def mirror(pose):
        from posemamba_jax.skeleton import H36M17

        return H36M17.flip(pose)

    path = writers.array(tmp_path / "k.npy", pixels)
    options = PredictOptions(
        str(path), checkpoint="fake", out=str(tmp_path / "out"), image_size="1000x1000",
        joint_set="h36m17", fps=50, bone_length="l_hip-l_knee=450", trajectory="none",
    )  # fmt: skip
    run(options, load=lambda _: (perfect, WINDOW))
    with np.load(tmp_path / "out" / "person_1.npz") as file:
        poses = file["poses_3d"]
    thigh = np.median(np.linalg.norm(truth[:, 4] - truth[:, 5], axis=-1))
    error = np.linalg.norm(poses * thigh / 450 - truth, axis=-1)
    assert error.mean() < 5
    apart = np.linalg.norm(fit_fixed_lengths(poses) - poses, axis=-1)
    assert apart.mean() < 15
