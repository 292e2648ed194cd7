"""Videos are decoded again and looked at."""

import subprocess
from fractions import Fraction

import imageio_ffmpeg
import numpy as np
import pytest
from matplotlib.colors import to_rgb
from PIL import Image

from posemamba_jax.data.sources.mocap import MocapConfig, build
from posemamba_jax.pictures.render import prepare_clip, render
from posemamba_jax.pictures.render.figure import COLORS, FrameRenderer
from posemamba_jax.pictures.render.video import EncodingError, probe_video, read_video, write_mp4


def decode(path):
    """Decodes (frames, height, width, 3) as FFmpeg shows them, and what it says of the file."""
    frames = imageio_ffmpeg.read_frames(str(path), output_params=["-fps_mode", "passthrough"])
    meta = next(frames)
    width, height = meta["size"]
    return np.stack([np.frombuffer(f, np.uint8).reshape(height, width, 3) for f in frames]), meta


def stream_line(path):
    said = subprocess.run(
        [imageio_ffmpeg.get_ffmpeg_exe(), "-hide_banner", "-i", str(path)], capture_output=True
    ).stderr.decode()
    return next(line for line in said.splitlines() if "Video:" in line)


def count_color(frame, name, tolerance=40):
    """Counts the pixels that have a colour of the palette, give or take what encoding does to
    it.
    """
    target = np.array(to_rgb(COLORS[name])) * 255
    return int((np.abs(frame.astype(float) - target).max(axis=-1) < tolerance).sum())


def make_video(path, size=(64, 48), frames=6, fps=25, rotate=None):
    """Makes a video whose frame i is grey of brightness 40 + 30 i with a red upper left corner."""
    width, height = size
    pictures = []
    for i in range(frames):
        picture = np.full((height, width, 4), 40 + 30 * i, np.uint8)
        picture[: height // 3, : width // 3] = (250, 20, 20, 255)
        pictures.append(picture)
    write_mp4(path, pictures, size, Fraction(fps))
    if rotate is not None:
        turned = path.with_name("turned.mp4")
        command = [imageio_ffmpeg.get_ffmpeg_exe(), "-v", "error", "-display_rotation", str(rotate)]
        subprocess.run([*command, "-i", str(path), "-c", "copy", str(turned)], check=True)
        return turned
    return path


def test_mp4_has_every_frame_at_the_true_rate(tmp_path, walker, projector):
    poses = walker(20)
    path = render(
        tmp_path / "new" / "walk.mp4",
        poses,
        poses_2d=projector(poses, 501, 401),
        image_size=(501, 401),
        fps=29.97,
        height=251,
        progress=False,
    )
    frames, meta = decode(path)
    assert len(frames) == 20
    assert meta["codec"] == "h264"
    assert meta["pix_fmt"].startswith("yuv420p")
    assert "29.97 fps" in stream_line(path) and "30k tbn" in stream_line(path)
    assert frames.shape[1] % 2 == 0 and frames.shape[2] % 2 == 0
    assert not list(path.parent.glob(".*")), "the unfinished file is gone"
    image, space = frames[:, :, : frames.shape[2] // 2], frames[:, :, frames.shape[2] // 2 :]
    for name in ("left", "right"):
        assert all(count_color(frame, name, 60) > 20 for frame in image)
        assert all(count_color(frame, name, 60) > 20 for frame in space)
    moved = np.abs(np.diff(space.astype(int), axis=0)).max(axis=(1, 2, 3))
    assert (moved > 50).all()


def test_the_left_is_where_the_left_is(walker):
    """The person faces the camera: left joints are drawn on the right, in both panels."""
    poses = walker(1)
    clip = prepare_clip(poses, poses_2d=poses[..., :2] / 4 + 500, image_size=(1000, 1000), fps=25)
    frame = FrameRenderer(clip, height=240).draw(0)[..., :3]
    for panel in (frame[:, :240], frame[34:-24, 240:]):
        columns = {
            name: np.nonzero(
                (np.abs(panel - np.array(to_rgb(COLORS[name])) * 255).max(axis=-1) < 10).any(axis=0)
            )[0]
            for name in ("left", "right")
        }
        assert columns["left"].mean() > columns["right"].mean() + 5


def test_panels_share_one_scale_in_both_directions(walker):
    """A square in the plane that faces the viewer is drawn as a square."""
    poses = np.repeat(walker(1), 4, axis=0)
    clip = prepare_clip(poses, fps=25)
    renderer = FrameRenderer(clip, height=300, azimuth=0, elevation=0)
    axes = renderer._panels[0]._pose.artists[0].axes
    corners = axes.transData.transform([(0, 0), (100, 0), (0, 100)])
    assert corners[1, 0] - corners[0, 0] == pytest.approx(corners[2, 1] - corners[0, 1])


def test_unobserved_frames_and_missing_poses_look_different(walker):
    poses = np.repeat(walker(1), 3, axis=0)
    poses[2] = np.nan
    clip = prepare_clip(poses, fps=25, mask=[True, False, True])
    renderer = FrameRenderer(clip, height=200)
    seen, filled, missing = (renderer.draw(i)[34:, :, :3].copy() for i in range(3))
    assert count_color(seen, "left", 8) > 50
    assert count_color(filled, "left", 8) == 0
    assert (filled != seen).any() and (filled[:-24] < 200).any()
    assert count_color(missing[:-24], "left", 60) == 0


def test_ground_truth_lies_over_the_prediction_or_beside_it(walker):
    poses = walker(2)
    over = FrameRenderer(prepare_clip(poses, ground_truth=poses + 80, fps=25), height=200)
    assert over.size == (200, 258)
    assert count_color(over.draw(0)[34:-24, :, :3], "truth", 8) > 50
    clip = prepare_clip(poses, ground_truth=poses, fps=25)
    beside = FrameRenderer(clip, height=200, truth_beside=True)
    assert beside.size == (400, 258)
    frame = beside.draw(0)[34:-24, :, :3]
    np.testing.assert_array_equal(frame[40:-20, 10:190], frame[40:-20, 210:390])


@pytest.mark.parametrize(
    ("fps", "frames", "shown"), [(30, 31, 31), (29.97, 12, 12), (50, 10, 10), (60, 13, 7)]
)
def test_gif_keeps_the_average_rate(tmp_path, walker, fps, frames, shown):
    path = render(tmp_path / "w.gif", walker(frames, fps), fps=fps, height=96, progress=False)
    with Image.open(path) as gif:
        assert gif.n_frames == shown
        assert gif.info["loop"] == 0
        delays, pictures = [], []
        for i in range(gif.n_frames):
            gif.seek(i)
            delays.append(gif.info["duration"])
            pictures.append(np.asarray(gif.convert("RGB")))
    assert min(delays) >= 20, "browsers slow down anything faster"
    # The last delay is FFmpeg's guess; the others tell when each frame after the first appears.
    times = np.cumsum(delays[:-1])
    stride = 2 if fps == 60 else 1
    np.testing.assert_allclose(times, 1000 * np.arange(1, shown) * stride / fps, atol=5.001)
    assert all((a != b).any() for a, b in zip(pictures, pictures[1:], strict=False))
    assert all(count_color(p, side) > 10 for p in pictures for side in ("left", "right"))


def test_the_video_stands_behind_its_keypoints_frame_by_frame(tmp_path, walker):
    video = make_video(tmp_path / "in.mp4")
    poses = np.full((8, 17, 3), np.nan)
    path = render(tmp_path / "out.mp4", poses, video=video, height=96, progress=False)
    frames, meta = decode(path)
    assert len(frames) == 8 and meta["fps"] == 25
    middle = frames[:, 34 + 60, 64].mean(axis=-1)
    np.testing.assert_allclose(middle[:6], 40 + 30 * np.arange(6), atol=6)
    np.testing.assert_allclose(middle[6:], 244, atol=4, err_msg="blank after the video's end")


def test_portrait_videos_stand_upright(tmp_path, walker):
    video = make_video(tmp_path / "in.mp4", rotate=-90)
    size, fps = probe_video(video)
    assert size == (48, 64) and fps == 25
    frame = next(iter(read_video(video, size)))
    assert frame.shape == (64, 48, 3)
    # Turned clockwise: what was the upper left corner is the upper right one.
    red = (frame[..., 0] > 180) & (frame[..., 1] < 90)
    assert red[:16, -12:].all() and not red[:, :24].any()
    path = render(tmp_path / "out.mp4", walker(3), video=video, height=128, progress=False)
    frames, _ = decode(path)
    assert frames.shape[2] == 96 + 128


def test_titles_and_names_are_taken_as_they_are(tmp_path, walker):
    title = r"$\frac{1}{2$ <b>100%</b> _x_ \n"
    clip = prepare_clip(np.stack([walker(2)] * 2), fps=25, title=title, track_names=["$a", "b$^"])
    assert FrameRenderer(clip, height=100).draw(0).shape == (158, 100, 4)


def test_a_failed_render_leaves_no_file(tmp_path):
    def frames():
        yield np.zeros((64, 64, 4), np.uint8)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_mp4(tmp_path / "out.mp4", frames(), (64, 64), Fraction(25))
    with pytest.raises(EncodingError, match="out.mp4: FFmpeg failed: .*not divisible by 2"):
        write_mp4(tmp_path / "out.mp4", [np.zeros((63, 63, 4), np.uint8)], (63, 63), Fraction(25))
    assert not list(tmp_path.iterdir())


def test_size_limits_are_told(walker):
    with pytest.raises(ValueError, match="height is 10"):
        FrameRenderer(prepare_clip(walker(1), fps=25), height=10)


def test_real_motion_is_rendered_upright(mocap_dir, tmp_path):
    recording = mocap_dir / "02" / "02_01.amc"
    options = MocapConfig(test=(str(recording),), fps=30, cameras=1, cache_dir="")
    clip = build(options, clip_len=12, stride=12, split="test", input_2d="ground_truth")[0]
    pixels = (clip["poses_2d"][..., :2] + 1) * 500
    path = render(
        tmp_path / "walk.mp4",
        clip["poses_3d_mm"],
        poses_2d=pixels,
        image_size=(1000, 1000),
        fps=30,
        height=200,
        progress=False,
    )
    frames, _ = decode(path)
    assert len(frames) == 12
    assert all(count_color(f[:, 200:], side, 60) > 20 for f in frames for side in ("left", "right"))
    upright = prepare_clip(clip["poses_3d_mm"], fps=30).poses[0]
    head, feet = upright[:, 10, 2], upright[:, [3, 6], 2].max(axis=1)
    assert (head - feet > 800).all(), "the head is more than 0.8 m above the feet"
