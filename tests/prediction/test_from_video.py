"""predict.py from a video: any kind of file, people found and saved, mistakes told first."""

import http.server
import json
import threading
import zipfile

import blob_videos as blobs
import numpy as np
import pytest
import writers
from moving_people import WINDOW, fake_predict, walking

from posemamba_jax.errors import UserError
from posemamba_jax.predict import from_video
from posemamba_jax.predict.detect import weights
from posemamba_jax.predict.detect.decode import is_video, open_video, read_frames
from posemamba_jax.predict.keypoints import read_keypoints
from posemamba_jax.predict.options import PredictOptions
from posemamba_jax.predict.run import run

SIZE = (96, 64)


@pytest.fixture
def spot_engine(monkeypatch):
    monkeypatch.setattr("posemamba_jax.predict.from_video.prepare_engine", lambda *_: blobs.ENGINE)


def lift(path, out, **options):
    run(
        PredictOptions(
            str(path), checkpoint="fake", out=str(out), outputs="npz", trajectory="none", **options
        ),
        load=lambda _: (fake_predict, WINDOW),
    )
    with np.load(out / "person_1.npz") as arrays:
        return dict(arrays)


def check_places(result, wanted, tolerance=1.0):
    """The root of every frame is where the spot was."""
    roots = result["poses_2d"][:, 0, :2]
    assert len(roots) == len(wanted)
    assert np.linalg.norm(roots - wanted, axis=1).max() < tolerance


def sound(seconds: int) -> tuple:
    return ("-f", "lavfi", "-t", seconds, "-i", "sine=frequency=440")


@pytest.mark.parametrize("kind", ["plain", "odd", "portrait", "rotated", "with sound", "webm"])
def test_a_person_is_where_the_video_shows_one(tmp_path, spot_engine, kind):
    size = {"odd": (97, 65), "portrait": (64, 96)}.get(kind, SIZE)
    wanted, frames = blobs.places(20, size), blobs.draw(20, size)
    path = tmp_path / ("clip.mkv" if kind == "webm" else "clip.mp4")
    filters = sound(1) if kind == "with sound" else ()
    blobs.encode(path, frames, filters=filters)
    if kind == "rotated":
        # Stored lying down, shown upright after a turn: what phones write.
        turned = tmp_path / "turned.mp4"
        blobs.ffmpeg("-display_rotation", 90, "-i", path, "-c", "copy", turned)
        path, size = turned, (64, 96)
        wanted = np.column_stack([wanted[:, 1], SIZE[0] - wanted[:, 0]])
    result = lift(path, tmp_path / "out")
    assert tuple(result["image_size"]) == size and result["fps"] == 25
    assert str(result["source"]) == path.name and result["observed"].all()
    check_places(result, wanted)


def test_a_second_run_starts_from_the_saved_keypoints(tmp_path, spot_engine, capsys):
    path = blobs.encode(tmp_path / "clip.mp4", blobs.draw(30, SIZE, absent=range(12, 18)))
    first = lift(path, tmp_path / "out", max_gap=2)
    assert first["segments"].tolist() == [[0, 12], [18, 30]]
    saved = tmp_path / "out" / from_video.KEYPOINTS
    assert str(saved) in capsys.readouterr().out
    keypoints = read_keypoints(saved)
    assert (keypoints.image_size, keypoints.fps, keypoints.num_frames) == (SIZE, 25, 30)
    assert {d.track for d in keypoints.detections} == {1}
    second = lift(saved, tmp_path / "again", max_gap=2)
    for name in ("poses_3d", "poses_2d", "observed", "frame_numbers"):
        np.testing.assert_array_equal(first[name], second[name])


def test_a_varying_frame_rate_is_told(tmp_path, spot_engine, capsys):
    path = tmp_path / "clip.mkv"
    # Every fourth frame stays four times as long.
    late = "setpts='(N+3*floor(N/4))/25/TB'"
    extra = ("-vf", late, "-fps_mode", "vfr")
    blobs.encode(path, blobs.draw(24, SIZE), extra=extra)
    assert open_video(path).num_frames == 24
    check_places(lift(path, tmp_path / "out"), blobs.places(24, SIZE))
    assert "variable frame rate" in capsys.readouterr().out


def test_files_that_are_no_whole_video(tmp_path, spot_engine, capsys):
    path = blobs.encode(tmp_path / "clip.mp4", blobs.draw(40, SIZE))
    data = path.read_bytes()
    for name, content, words in (
        ("empty.mp4", b"", "empty"),
        ("cut.mp4", data[: len(data) * 2 // 3], "cut short"),
        ("text.mp4", b"hello " * 99, "not a video"),
        ("still.mp4", blobs.encode(tmp_path / "one.mp4", blobs.draw(1, SIZE)).read_bytes(), "one"),
    ):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(UserError, match=words) as caught:
            lift(tmp_path / name, tmp_path / "out")
        assert name in str(caught.value) and "\n" not in str(caught.value)
    blobs.ffmpeg(*sound(1), tmp_path / "sound.mp4")
    with pytest.raises(UserError, match="only sound"):
        lift(tmp_path / "sound.mp4", tmp_path / "out")
    with pytest.raises(UserError, match="nobody was found in 10 frames"):
        dark = blobs.encode(tmp_path / "dark.mp4", blobs.draw(10, SIZE, absent=range(10)))
        lift(dark, tmp_path / "out")
    # A stream that breaks off in the middle is lifted as far as it goes.
    whole = blobs.encode(tmp_path / "whole.ts", blobs.draw(40, SIZE), extra=("-g", "10"))
    (tmp_path / "part.ts").write_bytes(whole.read_bytes()[: whole.stat().st_size // 2])
    result = lift(tmp_path / "part.ts", tmp_path / "part")
    assert 8 < len(result["observed"]) < 40
    seen = np.flatnonzero(result["observed"])
    np.testing.assert_allclose(
        result["poses_2d"][seen, 0, :2], blobs.places(40, SIZE)[seen], atol=1.5
    )


def test_frames_are_read_once_each_and_scaled(tmp_path):
    frames = blobs.draw(10, SIZE)
    video = open_video(blobs.encode(tmp_path / "clip.mp4", frames, fps="30000/1001"))
    assert video.fps == pytest.approx(30000 / 1001, rel=1e-9) and video.gaps is None
    read = list(read_frames(video, SIZE))
    assert len(read) == 10 and np.abs(read[7].astype(int) - frames[7]).mean() < 2
    some = list(read_frames(video, (48, 32), every=3))
    assert [f.shape for f in some] == [(32, 48, 3)] * 4
    small = frames[3].reshape(32, 2, 48, 2, 3).mean((1, 3))
    assert np.abs(some[1] - small).mean() < 3


def test_what_is_a_video(tmp_path, data_dir):
    for path in (data_dir / "keypoints").iterdir():
        assert not is_video(path)
    assert is_video(
        blobs.encode(tmp_path / "renamed.bin", blobs.draw(3, SIZE), extra=("-f", "mp4"))
    )


def test_options_and_checkpoint_are_checked_before_any_work(tmp_path, spot_engine, monkeypatch):
    path = blobs.encode(tmp_path / "clip.mp4", blobs.draw(3, SIZE))
    monkeypatch.setattr(
        "posemamba_jax.predict.from_video.open_input", lambda *_: pytest.fail("worked")
    )
    monkeypatch.setattr("posemamba_jax.predict.run.read_input", lambda *_: pytest.fail("worked"))
    keypoints = writers.array(tmp_path / "k.npy", walking(3))
    for source in (path, keypoints):
        with pytest.raises(UserError, match="nowhere"):
            run(PredictOptions(str(source), checkpoint=str(tmp_path / "nowhere")))
        with pytest.raises(UserError, match="--overlap 27"):
            lift(source, tmp_path / "out", overlap=27)
    with pytest.raises(UserError, match="--people 2: is for videos"):
        lift(keypoints, tmp_path / "out", people=2)
    monkeypatch.undo()
    with pytest.raises(UserError, match="--joint_set: .* is a video"):
        lift(path, tmp_path / "out", joint_set="coco17")
    with pytest.raises(UserError, match="--people"):
        PredictOptions(str(path), people=0)


def test_a_video_that_contradicts_the_keypoints(tmp_path, capsys):
    clip = blobs.encode(tmp_path / "clip.mp4", blobs.draw(20, SIZE))
    poses = walking(20) / 4
    same = {"video": str(clip), "out": tmp_path / "out"}

    def written(size, fps):
        return writers.mediapipe(tmp_path / "m.json", {1: poses * (size[0] / 160)}, size, fps=fps)

    # Half as large but of the same shape: the file's pixels count, and that is said.
    result = lift(written((192, 128), 25), **same)
    assert tuple(result["image_size"]) == (192, 128)
    assert "says 192x128 pixels, the video has 96x64" in capsys.readouterr().out
    with pytest.raises(UserError, match="another shape"):
        lift(written((160, 120), 25), **same)
    with pytest.raises(UserError, match="says 50 frames per second.*has 25.*--fps"):
        lift(written(SIZE, 50), **same)
    result = lift(written(SIZE, 50), fps=50, **same)
    assert result["fps"] == 50
    assert "--fps 50 is used; the video has 25" in capsys.readouterr().out


def test_ghosts_of_keypoint_files_are_left_out_and_people_count_from_1(tmp_path, capsys):
    ghost = np.full((60, 17, 2), np.nan)
    ghost[20:24] = walking(4, start=(500.0, 100.0))
    people = {1: walking(60), 5: ghost, 2: walking(60, start=(400.0, 240.0))}
    path = writers.openpose(tmp_path / "files", people)
    options = {"image_size": "640x480", "fps": 30.0}
    lift(path, tmp_path / "out", **options)
    names = sorted(p.name for p in (tmp_path / "out").iterdir())
    assert names == ["person_1.npz", "person_2.npz"]
    printed = capsys.readouterr().out
    assert "1 person seen for less than 0.5 s left out" in printed and "2 people" in printed
    lift(path, tmp_path / "all", min_track_seconds=0.0, **options)
    assert len(list((tmp_path / "all").iterdir())) == 3
    # A file without identities: its only person is number 1, as documented.
    lift(writers.array(tmp_path / "k.npy", walking(30)), tmp_path / "one", **options)
    assert [p.name for p in (tmp_path / "one").iterdir()] == ["person_1.npz"]


def test_an_interruption_leaves_the_frames_that_are_done(tmp_path, monkeypatch):
    path = blobs.encode(tmp_path / "clip.mp4", blobs.draw(40, SIZE))
    calls = iter(range(1000))

    def locate(images):
        if next(calls) == 12:
            raise KeyboardInterrupt
        return blobs.locate(images)

    engine = blobs.Engine(blobs.detect, locate, batch_size=2, workers=1)
    monkeypatch.setattr("posemamba_jax.predict.from_video.prepare_engine", lambda *_: engine)
    with pytest.raises(KeyboardInterrupt):
        lift(path, tmp_path / "out")
    kept = read_keypoints(tmp_path / "out" / from_video.KEYPOINTS)
    assert 2 < kept.num_frames < 40


def test_extras_that_are_not_installed_are_named(tmp_path, monkeypatch):
    path = blobs.encode(tmp_path / "clip.mp4", blobs.draw(3, SIZE))
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    for extra, package in (("litert", "ai-edge-litert"), ("rtmpose", "rtmlib")):
        with pytest.raises(UserError, match=f"--detector {extra}: .*{package}"):
            lift(path, tmp_path / "out", detector=extra)


@pytest.fixture
def server(tmp_path, monkeypatch):
    """Serves a folder; the published sizes and hashes are those of two small stand-ins."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    folder = tmp_path / "served"
    folder.mkdir()
    published = {}
    for part in ("detector", "full"):
        content = part.encode() * 1000
        (folder / f"{part}.bin").write_bytes(content)
        published[part] = (f"{part}.bin", len(content), weights._digest(content))
    monkeypatch.setattr(weights, "_PUBLISHED", published)
    monkeypatch.setattr(weights, "_describe", lambda content, name: (name, content))

    class Handler(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *arguments):
            super().__init__(*arguments, directory=str(folder))

        def log_message(self, *_):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        yield folder, f"http://127.0.0.1:{running.server_port}"
        running.shutdown()


def test_networks_are_downloaded_once_and_checked(server):
    folder, url = server
    heard = []
    networks = weights.find_networks("full", None, url, lambda *now: heard.append(now))
    assert networks.landmarks == b"full" * 1000 and networks.origin == url
    assert heard[-1] == ("full.bin", 4000, 4000)
    (folder / "full.bin").unlink()
    assert weights.find_networks("full", None, url).landmarks == b"full" * 1000  # from the cache
    (cached,) = weights.cache_folder().glob("full-*.tflite")
    cached.write_bytes(b"x")
    with pytest.raises(UserError, match=f"{cached.name}: damaged; remove it"):
        weights.find_networks("full", None, url)
    cached.unlink()
    for content in (b"full" * 999, b"full" * 2000, b"fool" * 1000):
        (folder / "full.bin").write_bytes(content)
        with pytest.raises(UserError, match="full.bin: .* bytes came that are not the 4000"):
            weights.find_networks("full", None, url)
    (folder / "full.bin").unlink()
    for address in (url, "http://127.0.0.1:1", "nonsense"):
        with pytest.raises(UserError) as caught:
            weights.find_networks("full", None, address)
        words = str(caught.value)
        assert "npm pack @mediapipe/pose" in words and "pip download" in words
        assert "--detector_weights" in words and "\n" not in words
    assert [p.name for p in weights.cache_folder().iterdir()] == [
        p.name for p in weights.cache_folder().glob("detector-*.tflite")
    ]


def test_files_without_pose_networks_are_refused_by_name(tmp_path):
    with zipfile.ZipFile(tmp_path / "other.task", "w") as archive:
        archive.writestr("readme.txt", "nothing here")
    (tmp_path / "page.html").write_text("<html>not found</html>")
    good = (tmp_path / "other.task").read_bytes()
    (tmp_path / "cut.task").write_bytes(good[:-30])
    (tmp_path / "cut.tgz").write_bytes(b"\x1f\x8b\x08\x00" + b"\x00" * 20)
    (tmp_path / "bad.tflite").write_bytes(b"\x1c\x00\x00\x00TFL3" + b"\xff" * 40)
    for name, words in (
        ("other.task", "holds no pose network"),
        ("page.html", "neither a .task or .whl"),
        ("cut.task", "damaged archive"),
        ("cut.tgz", "damaged archive"),
        ("bad.tflite", "damaged TFLite network"),
        ("absent.task", "No such file"),
    ):
        with pytest.raises(UserError, match=words) as caught:
            weights.find_networks("heavy", str(tmp_path / name))
        assert name in str(caught.value) and "\n" not in str(caught.value)


def test_people_are_written_as_mediapipe_landmarks(tmp_path):
    people = np.full((2, 3, 33, 4), np.nan, np.float32)
    people[0] = 10
    people[1, 1:] = 20
    path = tmp_path / "k.json"
    from_video.mediapipe.write(path, people, (40, 20), 25.0, 3)
    frames = json.loads(path.read_text())["frames"]
    assert [frame["ids"] for frame in frames] == [[1], [1, 2], [1, 2]]
    assert frames[1]["pose_landmarks"][1][0] == [0.5, 1.0, 0.5, 20]
