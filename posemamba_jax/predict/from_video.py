"""The first half of predict.py for a video: keypoints of the people in it, saved as a file."""

import dataclasses
import os
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import jax
import numpy as np
from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
)

from posemamba_jax.errors import UserError
from posemamba_jax.predict.detect import flips, tracking
from posemamba_jax.predict.detect import video as detection
from posemamba_jax.predict.detect.decode import Video, VideoError, open_video
from posemamba_jax.predict.detect.engines import Engine, check_litert, make_engine
from posemamba_jax.predict.detect.rtmpose import check_rtmpose, write_keypoints
from posemamba_jax.predict.detect.weights import cache_folder, find_networks
from posemamba_jax.predict.inputs import by
from posemamba_jax.predict.keypoints import mediapipe
from posemamba_jax.predict.lift import LoadedModel, count_windows, default_batch_size
from posemamba_jax.predict.options import PredictOptions
from posemamba_jax.skeleton import H36M17

KEYPOINTS = "keypoints.json"


def stages(console: Console) -> Progress:
    """Progress of predict.py's stages: what is done, of how much, and the time left."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    return Progress(*columns, TimeRemainingColumn(), console=console, transient=True)


def prepare_engine(options: PredictOptions, console: Console) -> Engine | None:
    """Returns the pose networks, ready to run; None for RTMPose, which brings its own.

    Raises:
      UserError: an extra is not installed, or the networks cannot be found.
    """
    if options.detector == "rtmpose":
        check_rtmpose()
        return None
    if options.detector == "litert":
        check_litert()
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn())
    with Progress(*columns, TimeRemainingColumn(), console=console, transient=True) as bar:
        tasks = {}

        def report(name: str, done: int, size: int) -> None:
            if name not in tasks:
                tasks[name] = bar.add_task(f"downloading {name}", total=size)
            bar.update(tasks[name], completed=done)

        networks = find_networks(options.detector_model, options.detector_weights, None, report)
    keep_compiled_programs()
    return make_engine(networks, options.detector)


def keep_compiled_programs() -> None:
    """Lets JAX keep compiled programs in the user's cache, unless a folder is set already."""
    if jax.config.jax_compilation_cache_dir is None:
        folder = cache_folder().with_name("compiled")
        jax.config.update("jax_compilation_cache_dir", os.fspath(folder))


def find_keypoints(
    options: PredictOptions, video: Video, engine: Engine | None, out: Path, console: Console
) -> tuple[Path, list[str]]:
    """Finds the people in a video and writes their landmarks as MediaPipe keypoints.

    Args:
      options: what to do. video: where. engine: from `prepare_engine`.
      out: folder for the keypoint file.

    Returns:
      The file, and remarks for the user.

    Raises:
      UserError: nobody is in the video, or it cannot be decoded.
      KeyboardInterrupt, SystemExit: as it came; the frames done so far are in the file.
    """
    path = out / KEYPOINTS
    notes = []
    if video.gaps is not None:
        low, high = (1000 * gap for gap in video.gaps)
        notes.append(
            f"variable frame rate: frames follow each other after {low:.0f} to {high:.0f} ms; "
            f"poses are one a frame, as if evenly {video.fps:.4g} per second. To have them exact, "
            f"make the video even first: ffmpeg -i {video.path.name} -fps_mode cfr even.mp4"
        )
    if engine is None:
        with stages(console) as bar:
            task = bar.add_task("finding people", total=video.num_frames)
            write_keypoints(video, path, lambda n: bar.advance(task, n))
        return path, notes
    people, more = _find_with_blazepose(options, video, engine, path, console)
    notes += more
    last = max((int(np.flatnonzero(p.seen)[-1]) for p in people if p.seen.any()), default=-1)
    if last < 0:
        raise UserError(
            f"{video.path}: nobody was found in {video.num_frames} frames; people have to be seen "
            f"from head to hips and not too far away"
        )
    mended = []
    for number, person in enumerate(people, start=1):
        done = flips.mend(person.points, options.max_gap)
        mended.append(done.points)
        notes += _notes_on_flips(number, done, options.detector_model)
    mediapipe.write(path, mended, video.size, video.fps, video.num_frames)
    return path, notes


def _notes_on_flips(number: int, done: flips.Mended, model: str) -> list[str]:
    notes = []
    if done.changed.any():
        notes.append(
            f"person {number}: left and right were exchanged in {done.changed.sum()} of "
            f"{len(done.changed)} frames and put back"
        )
    if done.doubtful.any():
        first, last = np.flatnonzero(done.doubtful)[[0, -1]]
        better = "; --detector_model heavy is surer" if model != "heavy" else ""
        notes.append(
            f"person {number}: left and right change so often between frames {first} and {last} "
            f"that it stays open which is which{better}"
        )
    return notes


def _find_with_blazepose(
    options: PredictOptions, video: Video, engine: Engine, path: Path, console: Console
) -> tuple[Sequence[detection.PersonLandmarks], list[str]]:
    with stages(console) as bar:
        task = bar.add_task("looking for people", total=video.num_frames)
        sightings = detection.find_people(video, engine, lambda n: bar.advance(task, n))
        decoded = len(sightings) * detection.frames_between(video)
        if not sightings:
            raise VideoError(f"{video.path}: no frame can be decoded; is the file damaged?")
        tracks = tracking.follow(sightings, video.fps)
        chosen, ghosts = tracking.choose(
            tracks, options.people, video.size, options.min_track_seconds * video.fps
        )
        notes = _notes_on_people(len(tracks), ghosts, len(chosen), options)
        if decoded <= video.num_frames - detection.frames_between(video):
            notes.append(
                f"{video.path}: only about {decoded} of {video.num_frames} frames can be decoded; "
                f"the file is damaged or cut short"
            )
        task = bar.add_task("placing landmarks", total=video.num_frames)
        found = detection.place_landmarks(video, chosen, engine, lambda n: bar.advance(task, n))
        people = [detection.PersonLandmarks.nowhere(video.num_frames) for _ in chosen]
        frame = 0
        try:
            for frame, index, landmarks in found:
                people[index].put(frame, landmarks)
        except (KeyboardInterrupt, SystemExit):  # Ctrl-C, SIGTERM
            found.close()
            if any(person.seen.any() for person in people):
                points = [person.points for person in people]
                mediapipe.write(path, points, video.size, video.fps, frame + 1)
                console.print(
                    f"wrote {path}: the first {frame + 1} of {video.num_frames} frames",
                    soft_wrap=True, markup=False, highlight=False,
                )  # fmt: skip
            raise
    return people, notes


def _notes_on_people(found: int, ghosts: int, chosen: int, options: PredictOptions) -> list[str]:
    notes = []
    if ghosts:
        notes.append(
            f"{ghosts} {'person' if ghosts == 1 else 'people'} seen for less than "
            f"{options.min_track_seconds:g} s left out (--min_track_seconds)"
        )
    others = found - ghosts - chosen
    if others > 0:
        notes.append(
            f"{found - ghosts} people found, the {chosen} most in view chosen; "
            f"--people {found - ghosts} takes all"
        )
    return notes


def open_input(options: PredictOptions) -> Video:
    """Returns the video to look at.

    Raises:
      UserError: it cannot be read, or an option does not go with a video.
    """
    for name in ("format", "joint_set", "coordinates", "clip", "image_size", "video"):
        if getattr(options, name) is not None:
            raise UserError(
                f"--{name}: says something about a keypoint file, but {options.keypoints} is a "
                f"video; leave it out"
            )
    return open_video(options.keypoints)


def look_at_video(
    options: PredictOptions, model: LoadedModel, out: Path, console: Console
) -> tuple[PredictOptions, list[str]]:
    """Finds the keypoints of a video; returns the options for lifting them, and remarks.

    The model is compiled meanwhile.
    """
    video = open_input(options)
    engine = prepare_engine(options, console)
    out.mkdir(parents=True, exist_ok=True)
    say(f"{video.path}: {video.num_frames} frames at {video.fps:.6g} per second, {by(video.size)}")
    with ThreadPoolExecutor(1) as aside:
        # As many as there will be, if the person is seen from the first frame to the last.
        windows = count_windows(video.num_frames, model.window, options.overlap)
        clips = min(windows, options.batch_size or default_batch_size(model.window))
        shape = (clips, model.window, H36M17.num_joints, model.channels)
        clip = np.zeros(shape, np.float32)
        compiled = aside.submit(model.predict, clip) if jax.default_backend() == "cpu" else None
        path, notes = find_keypoints(options, video, engine, out, console)
        if compiled is not None:
            compiled.result()
    say(f"wrote {path}")
    found = {"keypoints": str(path), "video": options.keypoints}
    if options.detector == "rtmpose":
        found["fps"] = options.fps or video.fps
    return dataclasses.replace(options, **found), notes


def say(text: str) -> None:
    """Prints a line whatever the terminal's encoding; file names may hold any bytes."""
    encoding = sys.stdout.encoding or "utf-8"
    print(text.encode(encoding, "backslashreplace").decode(encoding))
