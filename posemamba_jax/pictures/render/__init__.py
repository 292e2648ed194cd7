"""Moving pictures of poses: MP4, GIF, and a web page that opens from disk."""

from fractions import Fraction
from itertools import chain, repeat
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from posemamba_jax.pictures.render.figure import FrameRenderer
from posemamba_jax.pictures.render.html import write_html
from posemamba_jax.pictures.render.scene import Clip, exact_frame_rate, prepare_clip
from posemamba_jax.pictures.render.video import (
    gif_stride,
    has_sound,
    make_film,
    probe_video,
    read_video,
    write_gif,
    write_mp4,
)

__all__ = ["Clip", "exact_frame_rate", "prepare_clip", "render"]

SUFFIXES = (".mp4", ".gif", ".html")


def render(
    path_out,
    poses_3d,
    *,
    video=None,
    fps=None,
    image_size=None,
    truth_beside: bool = False,
    azimuth: float = 25.0,
    elevation: float = 12.0,
    height: int | None = None,
    progress: bool = True,
    **shown,
) -> Path:
    """Shows a clip as a video, a GIF or a web page, by the suffix of `path_out`.

    Args:
      path_out: file ending in .mp4, .gif or .html; its folder is made if need be.
      poses_3d: (frames, joints, 3) or (tracks, frames, joints, 3); joints that are not finite are
        left out.
      video: the video that frame i of the poses is frame i of; shown behind the keypoints, with its
        sound in an MP4 and in the page, which holds a small copy. Where it is shorter than the
        poses, the rest is blank.
      fps: frames per second of the poses; None takes the video's.
      image_size: (width, height) in pixels; None takes the video's.
      truth_beside: ground truth in a panel of its own rather than over the prediction.
      azimuth: how far the viewer of the 3D panel stands to the side of the camera, in degrees.
      elevation: how far the viewer stands above the camera, in degrees.
      height: of the panels in pixels, 480 for MP4 and 300 for GIF if None.
      progress: whether to show progress on the terminal.
      **shown: what else there is to see, as `prepare_clip` takes it: `poses_2d`, `ground_truth`,
        `mask`, `skeleton`, `title`, `units`, `track_names`, `up`, `camera`, `ground` and `curves`.

    Returns:
      The path that was written.

    Raises:
      ValueError: an argument does not fit; the message names it.
      FileNotFoundError: there is no such video.
    """
    path_out = Path(path_out)
    suffix = path_out.suffix.lower()
    if suffix not in SUFFIXES:
        raise ValueError(
            f"{path_out}: can write {', '.join(SUFFIXES)}, not {suffix or 'no suffix'}"
        )
    if video is not None:
        size, rate = probe_video(video)
        fps = rate if fps is None else fps
        image_size = size if image_size is None else image_size
    if fps is None:
        raise ValueError("fps is missing: give the frame rate of the poses, or the video")
    clip = prepare_clip(poses_3d, fps=fps, image_size=image_size, **shown)
    if suffix == ".html":
        film = None if video is None else make_film(video, clip.fps, clip.num_frames)
        write_html(path_out, clip, film)
    else:
        view = {"azimuth": azimuth, "elevation": elevation, "truth_beside": truth_beside}
        height = height or (480 if suffix == ".mp4" else 300)
        _render_video(path_out, clip, video, progress, height=height, **view)
    return path_out


def _render_video(path_out: Path, clip: Clip, video, progress: bool, **look) -> None:
    with_image = video is not None or clip.poses_2d is not None
    renderer = FrameRenderer(clip, with_image=with_image, **look)
    is_gif = path_out.suffix.lower() == ".gif"
    stride = gif_stride(clip.fps) if is_gif else 1
    images = repeat(None)
    if video is not None:
        images = chain(read_video(video, renderer.image_size), repeat(None))

    def frames():
        for frame, image in zip(range(clip.num_frames), images, strict=False):
            if frame % stride == 0:
                yield renderer.draw(frame, image)

    write = write_gif if is_gif else write_mp4
    total = -(-clip.num_frames // stride)
    shown = _with_progress(frames(), total, path_out.name, progress)
    sound = {}
    if not is_gif and video is not None and has_sound(video):
        sound = {"sound": video, "seconds": clip.num_frames / clip.fps}
    write(path_out, shown, renderer.size, Fraction(clip.fps, stride), **sound)


def _with_progress(frames, total: int, name: str, progress: bool):
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.completed}/{task.total} frames"),
        TextColumn("{task.fields[rate]}"),
        TimeRemainingColumn(),
    )
    console = Console(stderr=True)
    with Progress(*columns, console=console, disable=not progress) as bar:
        task = bar.add_task(f"writing {name}", total=total, rate="")
        for frame in frames:
            yield frame
            bar.advance(task)
            speed = bar.tasks[0].speed
            bar.update(task, rate=f"{speed:.0f}/s" if speed else "")
