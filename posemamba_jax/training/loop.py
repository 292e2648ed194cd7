"""Training from the configuration to the pictures at the end, top to bottom."""

import dataclasses
import logging
import math
import os
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.experimental.compilation_cache import compilation_cache
from rich.console import Console

from posemamba_jax import data
from posemamba_jax.config.schema import Config
from posemamba_jax.data import pipeline
from posemamba_jax.data.clips import ClipSource
from posemamba_jax.errors import UserError
from posemamba_jax.evaluation import Predict, Report, evaluate
from posemamba_jax.pictures import plots as plotting
from posemamba_jax.skeleton import Skeleton
from posemamba_jax.training import mesh as mesh_lib
from posemamba_jax.training import processes, run_log, signals
from posemamba_jax.training.checkpoint import RunCheckpoints
from posemamba_jax.training.prefetch import DevicePrefetch
from posemamba_jax.training.profiling import StepTrace
from posemamba_jax.training.progress import ProgressDisplay
from posemamba_jax.training.run_log import RunLog
from posemamba_jax.training.state import TrainState, abstract_state, make_state
from posemamba_jax.training.step import abstract_batch, make_predict, make_train_step, put_batch
from posemamba_jax.training.warm_start import start_from

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Outcome:
    """How a run ended.

    Attributes:
        step: optimiser steps taken.
        exit_code: one of `posemamba_jax.training.signals`.
        report: the last evaluation, or None.
        best_mm: the lowest test error so far, infinite before the first evaluation.
    """

    step: int
    exit_code: int
    report: Report | None
    best_mm: float


def train(config: Config, devices: Sequence[Any] | None = None) -> Outcome:
    """Trains, evaluates and saves as the configuration says, in `config.run_dir`.

    A run that is interrupted (Ctrl-C, SIGTERM) ends after the step it is in with a checkpoint.
    Resumed, it takes exactly the steps it would have taken. Of several processes
    (`config.distributed`) all have to call this; the first one writes what is to be read.

    Args:
        config: the run.
        devices: to train on; all there are unless given.

    Raises:
        UserError: the configuration, the data or the folder cannot be used.
    """
    processes.start(config.distributed)
    with processes.leaving_at_once():
        return _train(config, devices)


def _train(config: Config, devices: Sequence[Any] | None) -> Outcome:
    with user_errors(), processes.all_or_none("setting up"):
        set_compilation_cache(config.train.compilation_cache)
        mesh = mesh_lib.make_mesh(config.mesh, devices)
        mesh_lib.check_batch(config.train.batch_size, config.train.accumulate, mesh)
        train_source = data.build(config.data, "train")
        test_source = data.build(config.data, "test")
        check_source(config, train_source)
        share, shares = mesh_lib.batch_share(mesh)
        batches = pipeline.train_batches(
            train_source,
            batch_size=config.train.batch_size,
            seed=config.seed,
            flip_probability=config.data.flip_probability,
            augmentation=config.data.augment,
            process_index=share,
            process_count=shares,
        )
        steps_per_epoch = pipeline.steps_per_epoch(train_source, config.train.batch_size)
        total = config.train.steps or config.train.epochs * steps_per_epoch
        changed = run_log.check_run_dir(config)

    every, keep_every = config.train, config.train.keep_every * steps_per_epoch
    with ExitStack() as stack:
        checkpoints = stack.enter_context(
            RunCheckpoints(
                config.run_dir,
                keep_last=every.keep_last,
                keep_steps=range(keep_every, total + 1, keep_every) if keep_every else range(0),
            )
        )
        resumed = config.train.resume and checkpoints.latest_step() is not None
        if not resumed and checkpoints.latest_step() is not None:
            raise UserError(f"{config.run_dir} holds checkpoints; continue them with --resume")
        if resumed:
            with user_errors():
                state, progress = checkpoints.restore(abstract_state(config, mesh))
                batches.set_state(progress["pipeline"])
        else:
            state = make_state(config, mesh)
            if config.train.init_from is not None:
                with user_errors():
                    state = start_from(state, config)
            progress = {"evaluated_step": 0, "window": []}
        first = processes.is_first()
        with processes.all_or_none("writing into the run's folder"):
            if first:
                run_log.write_run_files(config)
            log = stack.enter_context(RunLog(config.run_dir, int(state.step), enabled=first))
        step = int(state.step)
        window: list[dict[str, Any]] = list(progress["window"])
        evaluated_step = progress["evaluated_step"]
        best_mm = checkpoints.best_error()

        console = None if first else Console(quiet=True)
        show = stack.enter_context(ProgressDisplay(total, step, every.batch_size, console))
        say_start(show, config, mesh, state, train_source, test_source, steps_per_epoch)
        if resumed:
            show.say(f"resuming at step {step}" + "".join(f"\n  changed: {c}" for c in changed))
        elif config.train.resume:
            show.say(f"{config.run_dir}: no checkpoint yet, starting at step 0")

        stop = processes.AgreedStop(stack.enter_context(signals.StopRequest()))
        keys = pipeline.batch_keys(train_source)
        train_step = compile_train_step(
            config, mesh, train_source.skeleton, keys, steps_per_epoch, total, show
        )
        show.pause(step)
        predict = make_predict(config, mesh)
        feed = stack.enter_context(DevicePrefetch(batches, lambda batch: put_batch(batch, mesh)))
        trace = stack.enter_context(StepTrace(every.profile_steps, config.run_dir))
        report: Report | None = None
        diverged = False

        def snapshot() -> dict[str, Any]:
            return {
                "pipeline": feed.get_state(),
                "evaluated_step": evaluated_step,
                "window": to_floats(window),
            }

        while True:
            stop.poll()
            epoch, at_boundary = step / steps_per_epoch, step and step % steps_per_epoch == 0
            at_end = step >= total

            if evaluated_step != step and (
                at_end or (at_boundary and is_multiple(round(epoch), every.eval_every))
            ):
                try:
                    report = evaluate_state(config, predict, state, test_source, stop)
                except signals.Stopped:
                    checkpoints.save(state, snapshot(), config)
                    break
                evaluated_step = step
                log.write(step, epoch, figures(report), "test")
                error_mm = processes.from_first(report.mpjpe_mm)
                if error_mm < best_mm:
                    best_mm = error_mm
                    checkpoints.save_best(state, snapshot(), config, best_mm)
                show.say(f"epoch {epoch:.4g}: test {report.summary()} (best {best_mm:.1f} mm)")
                show.pause(step)

            save_due = at_boundary and (
                is_multiple(round(epoch), every.save_every)
                or is_multiple(round(epoch), every.keep_every)
            )
            if save_due or at_end or stop or diverged:
                checkpoints.save(state, snapshot(), config)
            if at_end or stop or diverged:
                break

            with trace.before(step + 1):
                state, metrics = train_step(state, next(feed))
            step += 1
            if trace.after(step, metrics):
                show.say(f"steps {every.profile} traced in {trace.folder}")
            window.append(metrics)
            show.advance(step)

            if step % every.log_every == 0 or step == total:
                values = to_floats(window)  # The only place that waits for the device.
                window = []
                means = mean_of_finite(values)
                epoch = step / steps_per_epoch
                shown = {key: means[key] for key in ("loss", "pos") if key in means}
                if math.isfinite(best_mm):
                    shown["best mm"] = best_mm
                rate = show.update(step, epoch, shown)
                log.write(step, epoch, {**means, "clips_per_second": rate}, "train")
                diverged = report_skipped(show, state, values, every.max_skipped)

        checkpoints.wait()
        show.say(f"saved step {step} in {Path(config.run_dir) / 'checkpoints' / str(step)}")

        if stop:
            show.say(f"stopped; continue with: python train.py --resume {config.run_dir}")
            return Outcome(step, stop.exit_code, report, best_mm)
        if report is not None and first:
            report.save(Path(config.run_dir) / "report.json")
        draw(config, predict, state, test_source)
    code = signals.DIVERGED if diverged else signals.FINISHED
    return Outcome(step, code, report, best_mm)


# Parts


@contextmanager
def user_errors() -> Iterator[None]:
    """What reading files and settings raises for bad ones, as errors that are shown in one line."""
    try:
        yield
    except (ValueError, OSError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(str(error)) from error


def set_compilation_cache(folder: str | None) -> None:
    """Keeps compiled programs between runs; a folder set in JAX's own way wins."""
    if folder is None or os.environ.get("JAX_COMPILATION_CACHE_DIR"):
        return
    jax.config.update("jax_compilation_cache_dir", str(Path(folder).expanduser()))
    # A restart compiles many small programs besides the step; JAX keeps only slow ones by default.
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)
    # Whether there is a cache was decided when the process first compiled something.
    compilation_cache.reset_cache()


def check_source(config: Config, source: ClipSource) -> None:
    """Refuses clips that the model cannot take.

    Raises:
        UserError: the number of joints differs.
    """
    joints = source.skeleton.num_joints
    if joints != config.model.num_joints:
        raise UserError(
            f"data.source: {source.name} has {joints} joints, model.num_joints is "
            f"{config.model.num_joints}; set it to {joints}"
        )


def compile_train_step(
    config: Config,
    mesh: jax.sharding.Mesh,
    skeleton: Skeleton,
    batch_keys: Sequence[str],
    steps_per_epoch: int,
    total_steps: int,
    show: ProgressDisplay,
) -> Any:
    """The training step, compiled ahead so that the first rate shown is that of training."""
    show.say("compiling the training step")
    start = time.monotonic()
    train_step = make_train_step(
        config, mesh, skeleton, steps_per_epoch=steps_per_epoch, total_steps=total_steps
    )
    compiled = train_step.lower(
        abstract_state(config, mesh), abstract_batch(config, mesh, batch_keys)
    ).compile()
    show.say(f"compiled in {time.monotonic() - start:.1f} s")
    return compiled


def evaluate_state(
    config: Config, predict: Any, state: TrainState, source: ClipSource, stop: Any
) -> Report:
    """Evaluates the parameters on the test clips.

    Raises:
        Stopped: a stop was requested meanwhile.
    """
    return evaluate(
        predict_with(predict, state),
        source,
        batch_size=config.eval.batch_size,
        flip=config.eval.flip,
        progress=lambda done, total: stop.check(),
    )


def predict_with(predict: Any, state: TrainState) -> Predict:
    """The prediction function with the state's parameters."""
    return lambda poses_2d: predict(state.eval_params, poses_2d)


def figures(report: Report) -> dict[str, float]:
    """The overall figures of a report."""
    return {name: value for name, value in report.to_dict().items() if isinstance(value, float)}


def to_floats(window: list[dict[str, Any]]) -> list[dict[str, float]]:
    """Metrics of several steps from the device, which this waits for."""
    return [{k: float(v) for k, v in row.items()} for row in jax.device_get(window)]


def mean_of_finite(rows: list[dict[str, float]]) -> dict[str, float]:
    """Name -> mean of the values that are finite, for names that have one."""
    means = {}
    for name in rows[0] if rows else ():
        finite = [row[name] for row in rows if math.isfinite(row[name])]
        if finite:
            means[name] = sum(finite) / len(finite)
    return means


def report_skipped(
    show: ProgressDisplay, state: TrainState, rows: list[dict[str, float]], most: int
) -> bool:
    """Tells of updates that were skipped and why; True if they were too many in a row."""
    skipped = [row for row in rows if row["skipped"]]
    if not skipped:
        return False
    names = sorted({key for row in skipped for key, v in row.items() if not math.isfinite(v)})
    in_a_row = int(state.skipped_in_a_row)
    show.say(
        f"warning: {len(skipped)} updates skipped, not finite: {', '.join(names)} "
        f"({int(state.skipped)} so far, {in_a_row} in a row)"
    )
    if in_a_row < most:
        return False
    show.say(f"stopping: train.max_skipped, {most}, updates in a row were not finite")
    return True


def is_multiple(number: int, of: int) -> bool:
    """Whether something due every `of` is due at `number`; never for 0."""
    return of > 0 and number % of == 0


def say_start(
    show: ProgressDisplay,
    config: Config,
    mesh: jax.sharding.Mesh,
    state: TrainState,
    train_source: ClipSource,
    test_source: ClipSource,
    steps_per_epoch: int,
) -> None:
    """Says what is about to be trained on what."""
    params = sum(leaf.size for leaf in jax.tree.leaves(state.params))
    devices = mesh.devices.size
    kind = mesh.devices.flat[0].device_kind
    show.say(
        f"{train_source.name}: {len(train_source)} clips to train on, {len(test_source)} to test, "
        f"{config.data.clip_len} frames each; {steps_per_epoch} steps per epoch"
    )
    show.say(
        f"model: {params:,} parameters, dim {config.model.dim}, depth {config.model.depth}; "
        f"{devices} {kind} device{'s' if devices > 1 else ''}; results in {config.run_dir}"
    )


def draw(config: Config, predict: Any, state: TrainState, source: ClipSource) -> None:
    """Writes curves.png, and poses.png for one test clip."""
    run_dir = Path(config.run_dir)
    if processes.is_first():
        plotting.plot_curves(run_log.read_metrics(run_dir), run_dir / "curves.png")
    draw_poses(
        predict_with(predict, state),
        source,
        run_dir / "poses.png",
        config.eval.batch_size,
        index=len(source) // 2,
    )


def draw_poses(
    predict: Predict, source: ClipSource, path: Path, batch_size: int, *, index: int
) -> None:
    """Draws the prediction for one clip of a source over its target, in mm.

    All processes predict, the first one draws.
    """
    clip = source[index]
    poses_2d = np.repeat(clip["poses_2d"][None, ..., :2], batch_size, axis=0)
    pred = np.asarray(predict(poses_2d)[0]) * clip["mm_per_unit"][:, None, None]
    if not processes.is_first():
        return
    poses = (pred, clip["poses_3d_mm"], clip["poses_2d"])
    title = f"{source.name} {clip['action']}"
    plotting.plot_poses(*poses, path, skeleton=source.skeleton, title=title)
