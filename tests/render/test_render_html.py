"""The web page: what is inside it, and what it does in a browser."""

import base64
import json
import re

import numpy as np
import pytest
from chromium_page import Browser, find_chromium
from PIL import Image

from posemamba_jax.pictures.render import prepare_clip, render
from posemamba_jax.pictures.render.html import build_page

HOSTILE = "</script><script>window.hacked=1</script><b>&\"'\u2028{{script}} <!--"


def embedded(page: str) -> dict:
    """Reads what the page's data element says as a browser reads it."""
    text = re.search(r'<script type="application/json" id="clip">(.*?)</script>', page, re.S)[1]
    return json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))


def test_data_come_back_exactly_nan_included(walker):
    poses = walker(6)
    poses[2] = np.nan
    poses[3, 5] = np.inf
    clip = prepare_clip(poses, ground_truth=poses, fps=29.97, mask=np.arange(6) != 4)
    data = embedded(build_page(clip))
    track = data["tracks"][0]
    for name in ("poses", "truth"):
        back = np.frombuffer(base64.b64decode(track[name]), "<f4").reshape(6, 17, 3)
        np.testing.assert_array_equal(back, clip.poses[0])
    assert list(base64.b64decode(track["observed"])) == [1, 1, 1, 1, 0, 1]
    assert data["fps"] == [30000, 1001]
    assert track["keypoints"] is None


def test_texts_cannot_break_out(walker):
    clip = prepare_clip(walker(2), fps=25, title=HOSTILE, units=HOSTILE, track_names=[HOSTILE])
    page = build_page(clip)
    assert page.count("<script") == 2 and page.count("</script>") == 2
    assert "<b>" not in page
    data = embedded(page)
    assert data["title"] == data["units"] == data["tracks"][0]["name"] == HOSTILE


def test_the_page_refers_to_nothing_outside(walker):
    page = build_page(prepare_clip(walker(2), fps=25))
    assert "default-src 'none'" in page
    assert not re.search(r"https?://|\burl\(|@import|\bfetch\(|XMLHttpRequest|WebSocket", page)


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    if find_chromium() is None:
        pytest.skip("needs Chromium: apt-get install chromium")
    with Browser(tmp_path_factory.mktemp("profile")) as browser:
        yield browser


@pytest.fixture
def page_path(tmp_path, walker, projector):
    camera = walker(50)
    poses = camera - camera[:, :1]
    poses[20] = np.nan
    keypoints = projector(camera, 1080, 1920)
    return render(
        tmp_path / "walk.html",
        np.stack([poses, np.roll(poses, 7, axis=0)]),
        poses_2d=np.stack([keypoints, keypoints]),
        image_size=(1080, 1920),
        ground_truth=np.stack([poses + 40] * 2),
        fps=25,
        mask=np.arange(50) != 30,
        title=HOSTILE,
        track_names=["Ann", HOSTILE],
    )


def pixels(path):
    return np.asarray(Image.open(path).convert("RGB")).astype(int)


def test_it_plays_and_the_slider_moves_the_joints(browser, page_path, tmp_path):
    browser.open(page_path, 1200, 700)
    browser.evaluate("poseViewer.setPlaying(false); poseViewer.setFrame(0)")
    browser.evaluate("document.getElementById('play').click()")
    browser.wait_for("poseViewer.state.frame >= 5 && document.getElementById('frame').value >= 5")
    browser.evaluate("document.getElementById('play').click()")
    assert not browser.evaluate("poseViewer.state.playing")

    places, shots = [], []
    for frame in (3, 12):
        browser.evaluate(
            f"(() => {{ const s = document.getElementById('frame'); s.value = {frame};"
            " s.dispatchEvent(new Event('input')); })()"
        )
        browser.next_paint()
        assert browser.evaluate("poseViewer.state.frame") == frame
        assert f"{frame + 1}/50" in browser.evaluate("document.getElementById('clock').textContent")
        places.append(np.array(browser.evaluate("poseViewer.screenJoints()")))
        shots.append(pixels(browser.screenshot(tmp_path / f"wide_{frame}.png")))
    moved = np.linalg.norm(places[0] - places[1], axis=-1)
    assert moved[3] > 5 and moved[6] > 5 and moved[0] < 1
    assert (np.abs(shots[0] - shots[1]).max(axis=-1) > 60).sum() > 300
    # Within the canvas, head above feet, left joints to the right of right ones.
    assert (places[0] > 0).all()
    assert places[0][10, 1] < places[0][3, 1]
    assert places[0][11, 0] > places[0][14, 0]

    for frame, notice in ((20, "not observed"), (30, "not observed"), (31, "")):
        browser.evaluate(f"poseViewer.setFrame({frame})")
        browser.next_paint()
        assert browser.evaluate("document.getElementById('notice').textContent") == notice
    assert browser.evaluate("document.title") == HOSTILE
    assert browser.evaluate("window.hacked") is None
    assert browser.problems() == []
    assert browser.requests() == [page_path.resolve().as_uri()]


def test_mouse_orbits_and_zooms_and_keys_step(browser, page_path):
    browser.open(page_path, 1000, 600)
    browser.evaluate("poseViewer.setPlaying(false); poseViewer.setFrame(8)")
    state = "[poseViewer.camera.azimuth, poseViewer.camera.elevation, poseViewer.camera.zoom]"
    before = browser.evaluate(state)
    x, y = browser.evaluate(
        "(() => { const b = document.getElementById('scene').getBoundingClientRect();"
        " return [b.x + b.width / 2, b.y + b.height / 2]; })()"
    )
    browser.mouse("mousePressed", x, y, button="left", buttons=1, clickCount=1)
    browser.mouse("mouseMoved", x + 60, y + 20, button="left", buttons=1)
    browser.mouse("mouseReleased", x + 60, y + 20, button="left", clickCount=1)
    browser.mouse("mouseWheel", x, y, deltaX=0, deltaY=-100)
    browser.wait_for(f"{state}[2] > 1")
    after = browser.evaluate(state)
    assert after[0] < before[0] and after[1] > before[1]
    browser.evaluate("document.getElementById('scene').focus()")
    for key in ("ArrowRight", "ArrowRight", "ArrowLeft"):
        browser.call("Input.dispatchKeyEvent", type="keyDown", key=key)
    assert browser.evaluate("poseViewer.state.frame") == 9
    browser.evaluate("document.getElementById('reset').click()")
    assert browser.evaluate(state) == before
    assert browser.problems() == []


def test_it_is_dark_where_the_reader_wants_it_dark(browser, page_path, tmp_path):
    shown = {}
    for scheme in ("light", "dark"):
        feature = [{"name": "prefers-color-scheme", "value": scheme}]
        browser.call("Emulation.setEmulatedMedia", features=feature)
        browser.open(page_path, 900, 600)
        browser.evaluate("poseViewer.setPlaying(false); poseViewer.setFrame(8)")
        browser.next_paint()
        shot = Image.open(browser.screenshot(tmp_path / f"{scheme}.png")).convert("L")
        shown[scheme] = np.asarray(shot)
    browser.call("Emulation.setEmulatedMedia", features=[])
    assert np.median(shown["light"]) > 220 and np.median(shown["dark"]) < 40
    # Words and skeletons stand out on either.
    assert (shown["light"] < 120).mean() > 0.002 and (shown["dark"] > 120).mean() > 0.002
    assert browser.problems() == []


def test_a_phone_shows_everything_and_takes_touches(browser, page_path, tmp_path):
    browser.open(page_path, 390, 780, mobile=True)
    browser.evaluate("poseViewer.setPlaying(false); poseViewer.setFrame(8)")
    assert browser.evaluate("document.documentElement.scrollWidth") <= 390
    boxes = browser.evaluate(
        "['scene', 'image', 'play', 'frame', 'speed', 'reset'].map((id) => {"
        " const b = document.getElementById(id).getBoundingClientRect();"
        " return [b.left, b.top, b.right, b.bottom]; })"
    )
    for left, top, right, bottom in boxes:
        assert 0 <= left < right <= 390 and 0 <= top < bottom <= 780
    scene = boxes[0]
    assert scene[3] - scene[1] > 250, "a good part of the window is for the skeleton"
    before = browser.evaluate("[poseViewer.camera.azimuth, poseViewer.camera.zoom]")
    x, y = (scene[0] + scene[2]) / 2, (scene[1] + scene[3]) / 2 + 60
    browser.touch("touchStart", (x, y))
    browser.touch("touchMove", (x + 50, y))
    browser.touch("touchEnd")
    browser.touch("touchStart", (x - 30, y), (x + 30, y))
    browser.touch("touchMove", (x - 60, y), (x + 60, y))
    browser.touch("touchEnd")
    after = browser.evaluate("[poseViewer.camera.azimuth, poseViewer.camera.zoom]")
    assert after[0] < before[0] and after[1] > 1.5
    browser.evaluate("document.getElementById('reset').click()")
    browser.next_paint()
    shot = browser.screenshot(tmp_path / "phone.png")
    assert Image.open(shot).size == (780, 1560)
    assert browser.problems() == []
