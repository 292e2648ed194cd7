"""From a keypoint file to 3D poses on disk: what predict.py does, step by step."""

import dataclasses
import functools
import logging
import re
import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from rich.console import Console

from posemamba_jax.errors import UserError, describe_error
from posemamba_jax.files.numbering import natural_key
from posemamba_jax.files.reading import user_path
from posemamba_jax.predict import lift as inference
from posemamba_jax.predict import live
from posemamba_jax.predict import scale as metric_scale
from posemamba_jax.predict import smooth as smoothing
from posemamba_jax.predict.detect.decode import is_video
from posemamba_jax.predict.export import DEFAULT_OUTPUTS, WRITERS, Result
from posemamba_jax.predict.frame_rate import Sampling
from posemamba_jax.predict.from_video import look_at_video, say, stages
from posemamba_jax.predict.inputs import by, read_input
from posemamba_jax.predict.keypoints import (
    Keypoints2D,
    Track,
    build_tracks,
    choose_tracks,
    drop_ghosts,
    fill_gaps,
    find_segments,
    observed_masks,
)
from posemamba_jax.predict.options import (
    PredictOptions,
    parse_arguments,
    parse_bone_length,
    parse_list,
)
from posemamba_jax.predict.show import describe_scene
from posemamba_jax.predict.world.results import add_world
from posemamba_jax.pretrained import index as pretrained
from posemamba_jax.skeleton import H36M17, Skeleton

# Outputs that are not about a human body.
_OF_ANY_SKELETON = ("npz", "json", "csv", "trc")
NORMALISED = "half the image width"


def predict_track(
    track: Track,
    keypoints: Keypoints2D,
    fps: float,
    model: inference.LoadedModel,
    options: PredictOptions,
    on_progress=None,
    sampling: Sampling = Sampling(),  # noqa: B008
) -> Result:
    """Lifts one person.

    Args:
      track: whom. keypoints: the file, in pixels, that the track comes from.
      model: what lifts. sampling: which frames go into one window.
      on_progress: called with the number of windows done.

    Raises:
      UserError: the scale asked for is not plausible, or the prediction is not finite.
    """
    confident = track.keypoints
    observed_joints, observed = observed_masks(confident)
    pixels, segments = fill_gaps(track, options.max_gap)
    poses = np.full((*pixels.shape[:2], 3), np.nan, np.float32)
    places = np.full((len(pixels), 3), np.nan, np.float32)
    predicted = np.zeros(len(pixels), bool)
    for start, stop in segments:
        part = slice(start, stop)
        how_sure = np.where(observed_joints[part], confident[part, :, 2], 0)
        flat = model.prepare(pixels[part], how_sure, keypoints.image_size)
        poses[part] = sampling.lift(
            model.predict,
            flat,
            model.window,
            overlap=options.overlap,
            batch_size=options.batch_size,
            flip=options.flip,
            skeleton=track.skeleton,
            on_progress=on_progress,
        )
        predicted[part] = True
        places[part] = 0
        if options.trajectory == "image":
            places[part, :2] = flat[:, track.skeleton.root, :2]
    if options.smooth:
        _smooth(poses, segments, fps, track.skeleton, options)
    mm_per_unit, units = np.full(len(poses), np.nan, np.float32), NORMALISED
    if options.height_mm is not None or options.bone_length is not None:
        mm_per_unit = metric_scale.find_mm_per_unit(
            poses,
            segments,
            observed_joints,
            fps,
            height_mm=options.height_mm,
            bone=options.bone_length and parse_bone_length(options.bone_length),
        )
        poses, places, units = (
            poses * mm_per_unit[:, None, None],
            places * mm_per_unit[:, None],
            "mm",
        )
    scores = np.where(observed_joints, confident[..., 2], 0)
    return Result(
        track=track.id,
        poses_3d=poses,
        poses_2d=np.concatenate([pixels, scores[..., None]], -1).astype(np.float32),
        predicted=predicted,
        observed=observed,
        observed_joints=observed_joints,
        segments=segments,
        root_translation=places,
        frame_numbers=keypoints.origin
        + keypoints.step * np.arange(keypoints.frames[0], keypoints.frames[1] + 1),
        fps=fps,
        image_size=keypoints.image_size,
        units=units,
        mm_per_unit=mm_per_unit,
        source=Path(options.video or keypoints.path).name,
        source_format=keypoints.format,
        joint_set=keypoints.joint_set,
        skeleton=track.skeleton,
    )


def _smooth(poses, segments, fps: float, skeleton: Skeleton, options: PredictOptions) -> None:
    """Filters every segment in place, with lengths measured in legs so that defaults fit all.

    A skeleton without legs is measured by its longest chain of bones from the root.
    """
    for start, stop in segments:
        length = max(metric_scale.reference_length(poses[start:stop], skeleton), 1e-9)
        poses[start:stop] = length * smoothing.smooth_both_ways(
            poses[start:stop] / length,
            fps,
            min_cutoff=options.smooth_min_cutoff,
            beta=options.smooth_beta,
        )


def load_predict(
    checkpoint: str | None, implementation: str | None = None
) -> inference.LoadedModel:
    """Reads the model of a checkpoint.

    Args:
      checkpoint: a run's folder, a model's, or `pretrained:NAME`; None takes the first model that
        is installed with the package.
      implementation: of the scan; None takes the checkpoint's where that can run.

    Raises:
      UserError: there is none, it does not say its skeleton, or the implementation cannot run.
    """
    if checkpoint is None:
        checkpoint = _choose_pretrained()
    elif not checkpoint.startswith(pretrained.PREFIX) and not user_path(checkpoint).exists():
        raise UserError(f"--checkpoint {checkpoint}: no such file or folder")
    from posemamba_jax.evaluation.checkpoint import load_frame_rate
    from posemamba_jax.model.checkpoint import find_checkpoint, load_model, load_skeleton
    from posemamba_jax.model.implementation import choose_implementation

    found = find_checkpoint(
        checkpoint
    )  # Once: an installed model's file is compared with its hash.
    config, variables = load_model(found)
    chosen, note = choose_implementation(config.implementation, implementation)
    config = dataclasses.replace(config, implementation=chosen)
    if note:
        say(f"note: {note}")
    skeleton = load_skeleton(found)
    if skeleton is None:
        raise UserError(
            f"--checkpoint {checkpoint}: its model has {config.num_joints} joints and does not say "
            "which; save it again with its skeleton "
            "(posemamba_jax.model.checkpoint.save_model)"
        )
    predict = inference.make_predict(config, variables)
    fps = load_frame_rate(found)
    return inference.LoadedModel(predict, config.num_frames, skeleton, fps, config.confidence)


def _choose_pretrained() -> str:
    """Names the model to use where no checkpoint is given, and tells the user."""
    model = next(iter(pretrained.available().values()), None)
    if model is None:
        raise UserError(
            "--checkpoint is missing: give the folder of a run of train.py (the README says how to "
            "train one), or convert one of the authors' with python -m posemamba_jax.convert (see "
            "docs/checkpoints.md)"
        )
    say(f"model: {pretrained.PREFIX}{model.name}, {model.description} ({pretrained.CARD})")
    return f"{pretrained.PREFIX}{model.name}"


def run(options: PredictOptions, load=load_predict) -> list[Path]:
    """Reads, lifts and writes; returns the files written.

    Args:
      options: what to do.
      load: makes the fields of a `lift.LoadedModel` from `options.checkpoint`.

    Raises:
      UserError: something the user can put right.
    """
    try:
        return _run(options, load)
    except OSError as error:
        raise UserError(describe_error(error)) from None


def _run(options: PredictOptions, load) -> list[Path]:
    console = Console(stderr=True)
    # The checkpoint and the options come first: a mistake in them should not cost any work.
    with console.status("reading the model"):
        model = inference.LoadedModel(*load(options.checkpoint))
    window, skeleton = model.window, model.skeleton
    options, outputs, left_out = _fit_options(options, skeleton)
    if options.overlap is not None and not 0 <= options.overlap < window:
        raise UserError(f"--overlap {options.overlap}: must be from 0 to {window - 1}")
    out = Path(options.out)
    seen_by = None
    if options.keypoints is None or is_video(Path(options.keypoints)):
        seen_by = "the detector"
        if skeleton.first_difference(H36M17) is not None:
            raise UserError(
                f"--checkpoint {options.checkpoint}: its model lifts the skeleton {skeleton.name}; "
                f"people in videos are found with the joints of {H36M17.name}"
            )
        look = live.watch if options.keypoints is None else look_at_video
        options, notes = look(options, model, out, console)
    elif options.people != 1:
        raise UserError(
            f"--people {options.people}: is for videos; {options.keypoints} is none. --track "
            f"chooses people of a keypoint file"
        )
    else:
        notes = []
    with console.status("reading keypoints"):
        keypoints, fps, more = read_input(options, skeleton)
        tracks, how = build_tracks(keypoints, options.min_confidence, options.max_gap)
    sampling = Sampling.of(fps, model.fps if options.resample else None)
    notes += more + left_out + sampling.describe(fps, model.fps)
    tracks, ghosts = drop_ghosts(tracks, options.min_track_seconds * fps)
    if ghosts:
        notes.append(
            f"{ghosts} {'person' if ghosts == 1 else 'people'} seen for less than "
            f"{options.min_track_seconds:g} s left out (--min_track_seconds 0 keeps them)"
        )
    if seen_by and options.detector == "rtmpose":
        tracks = tracks[: options.people]
    chosen = choose_tracks(tracks, options.track)
    say(
        f"{keypoints.path}: {keypoints.format}, {keypoints.joint_set}, {keypoints.num_frames} "
        f"frames at {fps:.6g} per second, {by(keypoints.image_size)}"
    )
    people = "1 person" if len(tracks) == 1 else f"{len(tracks)} people"
    say(f"{people} ({how}), {len(chosen)} chosen")
    for note in notes:
        say(f"note: {note}")
    windows = _count_windows(chosen, window, options, sampling)
    batch_size = options.batch_size or inference.default_batch_size(window)
    # Filling up a batch costs as much as lifting, and one size is compiled once.
    options = dataclasses.replace(options, batch_size=min(batch_size, max(windows)))
    out.mkdir(parents=True, exist_ok=True)
    written, results = [], []
    with stages(console) as bar:
        task = bar.add_task("lifting", total=sum(windows))
        for track in chosen:
            try:
                result = predict_track(
                    track,
                    keypoints,
                    fps,
                    model,
                    options,
                    on_progress=lambda n: bar.advance(task, n),
                    sampling=sampling,
                )
            except UserError as error:
                raise UserError(f"person {track.id}: {error}") from None
            results.append(result)
    if options.trajectory == "world":
        with console.status("finding where everybody is"):
            results, notes = add_world(results, focal_px=options.focal_px, video=options.video)
        for note in notes:
            say(f"note: {note}")
    for result in results:
        for suffix in outputs:
            path = out / f"person_{result.track}.{suffix}"
            WRITERS[suffix](path, result)
            written.append(path)
    if options.render:
        written += _render(results, options, out)
    for path in written:
        say(f"wrote {path}")
    earlier = _of_earlier_runs(out, written)
    if earlier:
        shown = ", ".join(path.name for path in earlier[:5]) + (", ..." if earlier[5:] else "")
        say(f"note: {out} also holds what an earlier run wrote: {shown}")
    return written


def _fit_options(
    options: PredictOptions, skeleton: Skeleton
) -> tuple[PredictOptions, list[str], list[str]]:
    """Leaves out what only a human body has, where the model's skeleton is another.

    Returns:
      The options, the outputs to write, and remarks on what was left out of the defaults.

    Raises:
      UserError: an option asks for what the skeleton has not.
    """
    outputs = parse_list("outputs", options.outputs, tuple(WRITERS))
    if skeleton.first_difference(H36M17) is None:
        return options, outputs, []
    bodily = [name for name in outputs if name not in _OF_ANY_SKELETON]
    asked = {
        "--height_mm": options.height_mm is not None,
        "--bone_length": options.bone_length is not None,
        f"--outputs {bodily[0] if bodily else ''}": bodily and outputs != list(DEFAULT_OUTPUTS),
    }
    for option, there in asked.items():
        if there:
            raise UserError(
                f"{option}: for models of {H36M17.name} only; this one has the skeleton "
                f"{skeleton.name}"
            )
    left_out = [*bodily, *(["places in the room"] if options.trajectory == "world" else [])]
    if options.trajectory == "world":
        options = dataclasses.replace(options, trajectory="none")
    notes = [f"left out, for {H36M17.name} only: {', '.join(left_out)}"] if left_out else []
    return options, [name for name in outputs if name not in bodily], notes


def _of_earlier_runs(out: Path, written: list[Path]) -> list[Path]:
    """Lists the results in the output folder that this run did not write."""
    endings = "|".join(WRITERS)
    names = re.compile(rf"person_-?[0-9]+\.({endings})|poses\.(mp4|gif|html)")
    now = {path.name for path in written}
    found = (p for p in out.iterdir() if names.fullmatch(p.name) and p.name not in now)
    return sorted(found, key=lambda path: natural_key(path.name))


def _count_windows(
    tracks: list[Track], window: int, options: PredictOptions, sampling: Sampling
) -> list[int]:
    """Windows of every segment of every person."""
    observed = (observed_masks(track.keypoints)[1] for track in tracks)
    segments = [s for mask in observed for s in find_segments(mask, options.max_gap)]
    return [sampling.count_windows(b - a, window, options.overlap) for a, b in segments]


def _render(results: list[Result], options: PredictOptions, out: Path) -> list[Path]:
    """Pictures of all chosen people together."""
    from posemamba_jax.pictures.render import render

    paths = []
    poses, scene = describe_scene(results)
    for suffix in parse_list("render", options.render, ("mp4", "gif", "html")):
        try:
            path = render(
                out / f"poses.{suffix}",
                poses,
                video=options.video,
                **scene,
            )
        except (ValueError, RuntimeError) as error:
            raise UserError(f"--render {suffix}: {describe_error(error)}") from None
        paths.append(path)
    return paths


def main(argv: Sequence[str]) -> int:
    """Runs predict.py with the arguments of a command line; returns its exit code."""
    # FFmpeg is started at once after the fork, so nothing can hang; its remarks on sizes that were
    # asked for are no news to the user.
    warnings.filterwarnings("ignore", r"os\.fork\(\) was called", RuntimeWarning)
    logging.getLogger("imageio_ffmpeg").setLevel(logging.ERROR)
    options = parse_arguments(argv)
    run(options, functools.partial(load_predict, implementation=options.implementation))
    return 0
