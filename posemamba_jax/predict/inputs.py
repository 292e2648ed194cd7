"""What predict.py lifts: keypoints of a file, and what the options and a video say about them."""

import dataclasses

from posemamba_jax.errors import UserError
from posemamba_jax.predict.detect.decode import Video, open_video
from posemamba_jax.predict.keypoints import (
    Keypoints2D,
    ReadOptions,
    read_keypoints,
    with_image_size,
)
from posemamba_jax.predict.options import PredictOptions, parse_image_size
from posemamba_jax.skeleton import H36M17, Skeleton

DEFAULT_FPS = 30.0


def read_input(
    options: PredictOptions, skeleton: Skeleton = H36M17
) -> tuple[Keypoints2D, float, list[str]]:
    """Reads keypoints in pixels covering every frame, frames per second, and remarks for the
    user.

    Args:
      options: the file and what is known about it.
      skeleton: of the model that lifts.

    Raises:
      UserError: the file, the video or an option cannot be used.
    """
    keypoints = read_keypoints(
        options.keypoints,
        options.format,
        ReadOptions(options.joint_set, options.clip, options.coordinates, skeleton),
    )
    size = None if options.image_size is None else parse_image_size(options.image_size)
    fps, notes = options.fps or keypoints.fps, []
    if size and keypoints.image_size and size != keypoints.image_size:
        notes.append(f"--image_size {by(size)} replaces the file's {by(keypoints.image_size)}")
    size = size or keypoints.image_size
    if options.video is not None:
        video = open_video(options.video)
        notes += _compare(video, keypoints, size, options)
        size, fps = size or video.size, fps or video.fps
        keypoints = _cover(keypoints, video.num_frames, options.video)
    keypoints = with_image_size(keypoints, size)
    notes = [*keypoints.notes, *notes]
    if fps is None:
        notes.append(f"frame rate unknown, {DEFAULT_FPS:g} assumed; give --fps or --video")
    return keypoints, float(fps or DEFAULT_FPS), notes


def by(size: tuple[int, int]) -> str:
    """Returns a size as text, such as 1920x1080."""
    return f"{size[0]}x{size[1]}"


def _compare(
    video: Video, keypoints: Keypoints2D, size: tuple[int, int] | None, options: PredictOptions
) -> list[str]:
    """Returns where a video differs from what the file or the options say, as remarks.

    Raises:
      UserError: they cannot be of the same pictures, or frames cannot be matched.
    """
    notes = []
    if size is not None and size != video.size:
        stretch = size[0] / size[1] * video.size[1] / video.size[0]
        whose = "--image_size" if options.image_size is not None else f"{keypoints.path}"
        if abs(stretch - 1) > 0.01:
            raise UserError(
                f"{whose} says {by(size)} pixels, but --video {options.video} has "
                f"{by(video.size)}, which is another shape; is it the right video?"
            )
        notes.append(
            f"{whose} says {by(size)} pixels, the video has {by(video.size)}: keypoints count in "
            f"the former, and the video is scaled to it"
        )
    fps = options.fps or keypoints.fps
    if fps is not None and abs(fps / video.fps - 1) > 0.02:
        if options.fps is None:
            raise UserError(
                f"{keypoints.path} says {fps:g} frames per second, but --video {options.video} has "
                f"{video.fps:.4g}; give the right one with --fps"
            )
        notes.append(f"--fps {fps:g} is used; the video has {video.fps:.4g}")
    return notes


def _cover(keypoints: Keypoints2D, num_frames: int, video: str) -> Keypoints2D:
    """Spreads the keypoints over all frames of the video, numbered from 0 or from 1."""
    if keypoints.step > 1 and keypoints.origin + keypoints.step * keypoints.frames[1] < num_frames:
        keypoints = _with_own_numbers(keypoints)  # They number frames of the video after all.
    first, last = keypoints.frames
    # Decoders disagree by a frame or two about where a video ends.
    for base, slack in ((0, 0), (1, 0), (0, 2)):
        if first >= base and last < base + num_frames + slack:
            frames = (base, max(last, base + num_frames - 1))
            return dataclasses.replace(keypoints, frames=frames)
    raise UserError(
        f"{keypoints.path}: keypoints reach frame {last}, but {video} has {num_frames} frames; "
        f"are they of this video?"
    )


def _with_own_numbers(keypoints: Keypoints2D) -> Keypoints2D:
    """Puts the keypoints under the file's own frame numbers, most of which show nobody."""

    def own(number: int) -> int:
        return keypoints.origin + keypoints.step * number

    return dataclasses.replace(
        keypoints,
        detections=tuple(dataclasses.replace(d, frame=own(d.frame)) for d in keypoints.detections),
        frames=(own(keypoints.frames[0]), own(keypoints.frames[1])),
        step=1,
        origin=0,
        notes=(),
    )
