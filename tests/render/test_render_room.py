"""People in a room, with the video and its sound: the film in the page, camera view, curves."""

import json
import re
import subprocess
import types
from fractions import Fraction

import imageio_ffmpeg
import numpy as np
import pytest
from chromium_page import Browser, find_chromium
from PIL import Image

from posemamba_jax.pictures.render import prepare_clip, render
from posemamba_jax.pictures.render.figure import FrameRenderer
from posemamba_jax.pictures.render.video import has_sound, make_film

FFMPEG = imageio_ffmpeg.get_ffmpeg_exe()


@pytest.fixture(scope="module")
def grey_video(tmp_path_factory):
    """40 frames of 320x240 at 20 per second, frame i of brightness 30 + 5 i, with a tone."""
    path = tmp_path_factory.mktemp("video") / "grey.mp4"
    raw = np.repeat(np.uint8(30 + 5 * np.arange(40)), 320 * 240 * 3).tobytes()
    command = [FFMPEG, "-v", "error", "-y", "-f", "rawvideo", "-pix_fmt", "rgb24"]
    command += ["-s", "320x240", "-framerate", "20", "-i", "-", "-f", "lavfi"]
    command += ["-i", "sine=400:d=2", "-c:v", "libx264", "-pix_fmt", "yuv420p", "-shortest", path]
    subprocess.run(list(map(str, command)), input=raw, check=True)
    return path


def film_camera(focal=300.0):
    """Makes a level camera 1.2 m above the ground: x right, y up, z towards the camera."""
    rotation = np.diag([1.0, -1.0, -1.0])
    return types.SimpleNamespace(focal_px=focal, rotation=rotation, position=[0, 1200, 0])


def walking_through(walker, frames, start):
    """Makes (frames, 17, 3) world millimetres, y up, walking to the right 4 m away on the
    ground.
    """
    camera = walker(frames)
    world = (camera - camera[:, :1]) * np.float32([1, -1, -1])
    world += np.float32([start, 0, -4000]) + np.arange(frames)[:, None, None] * [30.0, 0, 0]
    return world - np.float32([0, world[..., 1].min(), 0])


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    if find_chromium() is None:
        pytest.skip("needs Chromium: apt-get install chromium")
    with Browser(tmp_path_factory.mktemp("profile")) as browser:
        yield browser


@pytest.fixture(scope="module")
def room(tmp_path_factory, walker, grey_video):
    """A page of two people in a room, and what was put in."""
    people = np.stack([walking_through(walker, 40, start) for start in (-900.0, 300.0)])
    people[1, :8] = np.nan
    camera = film_camera()
    local = (people - np.float32(camera.position)) @ camera.rotation.T
    pixels = local[..., :2] / local[..., 2:] * 300 + np.array([160, 120])
    knee = np.stack([np.linspace(0, 60, 40), np.linspace(10, 20, 40)])
    path = render(
        tmp_path_factory.mktemp("room") / "room.html",
        people,
        poses_2d=pixels,
        video=grey_video,
        camera=camera,
        up="y",
        ground=0.0,
        curves={"knee (°)": knee, "height (mm)": people[:, :, 10, 1]},
    )
    return path, people, pixels, knee


def test_a_film_is_small_has_every_frame_and_the_sound(grey_video, tmp_path):
    film = make_film(grey_video, Fraction(20), 30, longest=160)
    assert film.sound and film.seconds == Fraction(30, 20)
    path = tmp_path / "film.mp4"
    path.write_bytes(film.data)
    frames = imageio_ffmpeg.read_frames(str(path), output_params=["-fps_mode", "passthrough"])
    meta = next(frames)
    grey = [np.frombuffer(frame, np.uint8).mean() for frame in frames]
    assert meta["size"] == (160, 120) and has_sound(path)
    np.testing.assert_allclose(grey, 30 + 5 * np.arange(30), atol=4)

    noise = np.random.default_rng(0).integers(0, 255, (30, 270, 480, 3), np.uint8)
    source = ["-f", "rawvideo", "-pix_fmt", "rgb24", "-s", "480x270", "-framerate", "30"]
    command = [FFMPEG, "-v", "error", *source, "-i", "-", "-preset", "ultrafast", "-crf", "20"]
    subprocess.run([*command, tmp_path / "noise.mp4"], input=noise.tobytes(), check=True)
    film = make_film(tmp_path / "noise.mp4", Fraction(30), 30)
    # What nothing compresses gets 900 kbit per second and 1800 at once: 1.8 MB for ten seconds,
    # base64 included.
    assert not film.sound and len(film.data) * 8 < 1.05 * (900e3 + 1800e3)


def test_an_mp4_keeps_the_sound(tmp_path, walker, grey_video):
    path = render(tmp_path / "a.mp4", walker(12), video=grey_video, height=96, progress=False)
    assert has_sound(path)
    said = subprocess.run([FFMPEG, "-i", path], capture_output=True).stderr.decode()
    seconds = float(re.search(r"Duration: 00:00:(\d+\.\d+)", said)[1])
    assert seconds == pytest.approx(12 / 20, abs=0.06)
    silent = render(tmp_path / "b.mp4", walker(3), fps=20, height=96, progress=False)
    assert not has_sound(silent)


def test_the_film_runs_in_step_and_stops_at_the_frame(browser, room, tmp_path):
    path, *_ = room
    browser.open(path, 1200, 700)
    browser.wait_for("poseViewer.film.readyState >= 2 && poseViewer.state.frame > 3")
    times = browser.evaluate("[poseViewer.film.currentTime * 20, poseViewer.state.frame]")
    assert abs(times[0] - times[1]) < 4, "the film leads and the skeletons follow"
    browser.evaluate("poseViewer.setPlaying(false)")
    box = browser.evaluate(
        "(() => { const b = document.getElementById('film').getBoundingClientRect();"
        " return [b.left, b.top, b.width, b.height]; })()"
    )
    for frame in (25, 6, 39):
        browser.evaluate(f"poseViewer.setFrame({frame})")
        # The film is 4:3 in the middle of its panel; its upper left holds no keypoints.
        x = int(box[0] + box[2] * 0.04)
        y = int(box[1] + box[3] / 2 - box[2] * 0.34)
        for _ in range(100):  # until the decoder has caught up
            browser.next_paint()
            shot = np.asarray(Image.open(browser.screenshot(tmp_path / "s.png")).convert("L"))
            if abs(int(shot[y, x]) - (30 + 5 * frame)) < 3:
                break
        else:
            pytest.fail(f"frame {frame} is never shown; the last was {(shot[y, x] - 30) / 5:.1f}")
    assert browser.problems() == []
    assert [url for url in browser.requests() if not url.startswith("blob:")] == [
        path.resolve().as_uri()
    ]


def test_a_film_paused_before_it_began_stays_paused(browser, room):
    browser.open(room[0], 1200, 700)
    browser.wait_for("poseViewer.film.readyState >= 3")
    browser.evaluate("poseViewer.setPlaying(false); poseViewer.setFrame(7)")
    browser.wait_for("!poseViewer.film.seeking")
    paused = browser.evaluate(
        "(async () => { poseViewer.setPlaying(true); poseViewer.setPlaying(false);"
        " await new Promise(r => setTimeout(r, 300)); return poseViewer.film.paused; })()"
    )
    assert paused and browser.evaluate("poseViewer.film.currentTime * 20") == pytest.approx(7.5)


def test_the_camera_view_is_what_the_camera_saw(browser, room):
    path, _, pixels, _ = room
    browser.open(path, 1200, 700)
    browser.evaluate("poseViewer.setPlaying(false); poseViewer.setFrame(20)")
    browser.evaluate("document.getElementById('camera-view').click()")
    width, height = browser.evaluate(
        "(() => { const s = document.getElementById('scene');"
        " return [s.clientWidth, s.clientHeight]; })()"
    )
    scale = min(width / 320, height / 240)
    for person in range(2):
        shown = np.array(browser.evaluate(f"poseViewer.screenJoints({person})"))
        wanted = (pixels[person, 20] - [160, 120]) * scale + np.array([width, height]) / 2
        np.testing.assert_allclose(shown, wanted, atol=0.2)


def test_following_keeps_a_person_in_the_middle_and_the_pose_can_be_saved(browser, room):
    path, people, _, knee = room
    browser.open(path, 1200, 700)
    browser.evaluate("poseViewer.setPlaying(false); poseViewer.setFollow('0')")
    roots = []
    for frame in (0, 39):
        browser.evaluate(f"poseViewer.setFrame({frame})")
        roots.append(browser.evaluate("poseViewer.screenJoints(0)")[0])
    assert abs(roots[0][0] - roots[1][0]) < 5
    browser.evaluate("poseViewer.setFollow('')")
    far = browser.evaluate("poseViewer.screenJoints(0)")[0]
    browser.evaluate("poseViewer.setFrame(0)")
    assert abs(far[0] - browser.evaluate("poseViewer.screenJoints(0)")[0][0]) > 60

    browser.evaluate("poseViewer.setFrame(12)")
    pose = browser.evaluate("poseViewer.describePose()")
    assert pose["frame"] == 12 and pose["up"] == "y" and pose["units"] == "mm"
    np.testing.assert_allclose(pose["people"][1]["joints"]["head"], people[1, 12, 10], atol=0.01)
    assert pose["people"][0]["curves"]["knee (°)"] == pytest.approx(knee[0, 12], abs=1e-4)
    browser.evaluate("poseViewer.setFrame(2)")
    absent = browser.evaluate("poseViewer.describePose()")["people"][1]
    assert set(absent["joints"].values()) == {None} and absent["curves"]["height (mm)"] is None


def test_the_graph_goes_to_a_frame_and_keys_do_what_they_say(browser, room):
    path, *_ = room
    browser.open(path, 1200, 760)
    browser.evaluate("poseViewer.setPlaying(false); poseViewer.setFrame(0)")
    x, y, w, h = browser.evaluate(
        "(() => { const b = document.getElementById('graph').getBoundingClientRect();"
        " return [b.x, b.y, b.width, b.height]; })()"
    )
    assert h > 60
    browser.mouse("mousePressed", x + w / 2, y + h / 2, button="left", buttons=1, clickCount=1)
    browser.mouse("mouseReleased", x + w / 2, y + h / 2, button="left", clickCount=1)
    assert abs(browser.evaluate("poseViewer.state.frame") - 20) < 3

    def press(key, **more):
        browser.call("Input.dispatchKeyEvent", type="keyDown", key=key, **more)

    for key, expression in (
        ("End", "poseViewer.state.frame === 39"),
        ("Home", "poseViewer.state.frame === 0"),
        ("c", "poseViewer.state.cameraView"),
        ("c", "!poseViewer.state.cameraView"),
        ("+", "poseViewer.state.speed === 2"),
        ("f", "poseViewer.state.follow === 'all'"),
        ("g", "document.getElementById('graph-panel').hidden"),
        ("m", "!poseViewer.film.muted"),
        ("?", "!document.getElementById('help').hidden"),
    ):
        press(key)
        assert browser.evaluate(expression), key
    press("ArrowRight", modifiers=8)
    assert browser.evaluate("poseViewer.state.frame") == 10
    assert browser.problems() == []


def test_a_page_knows_the_room(room, walker):
    path, people, *_ = room
    text = re.search(r'id="clip">(.*?)</script>', path.read_text(), re.S)[1]
    data = json.loads(text)
    assert data["ground"]["z"] == 0 and data["video_sound"]
    assert path.stat().st_size < 1e6
    clip = prepare_clip(people, fps=20, up="y", camera=film_camera(), image_size=(320, 240))
    # Turned with the poses: a point seen by the camera stays where the camera sees it.
    local = (clip.poses[0, 3] - clip.camera.position) @ clip.camera.rotation.T
    before = (people[0, 3] - [0, 1200, 0]) @ film_camera().rotation.T
    np.testing.assert_allclose(local, before, atol=1e-3)
    with pytest.raises(ValueError, match="image_size"):
        prepare_clip(people, fps=20, camera=film_camera())
    with pytest.raises(ValueError, match=r"curves\['knee'\]"):
        prepare_clip(people, fps=20, curves={"knee": np.zeros(3)})


def test_the_3d_panel_goes_along_and_names_keep_apart(walker):
    """Who walks far stays large, and people behind each other have two readable names."""
    near = walking_through(walker, 40, 0.0)
    far = near + np.arange(40)[:, None, None] * np.array([300.0, 0, 0])
    small, large = (
        FrameRenderer(prepare_clip(p, fps=20, up="y", ground=0.0), height=200)._panels[0]._view.half
        for p in (near, far)
    )
    assert large < 1.5 * small
    clip = prepare_clip(
        [near, near + [20.0, 0, 0]], fps=20, up="y", camera=film_camera(), image_size=(320, 240)
    )
    panel = FrameRenderer(clip, height=200)._panels[0]
    panel.update(0)
    heights = [label.get_position()[1] for label in panel._names]
    assert abs(heights[0] - heights[1]) > 0.08 * panel._view.half
