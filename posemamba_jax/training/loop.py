"""Training from the configuration to the pictures at the end, top to bottom."""

import dataclasses
import math
import secrets
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from rich.console import Console

from posemamba_jax.config.schema import Config
from posemamba_jax.data import pipeline
from posemamba_jax.data.prefetch import DevicePrefetch
from posemamba_jax.errors import UserError
from posemamba_jax.evaluation import Report, evaluate
from posemamba_jax.evaluation.checkpoint import evaluation_options
from posemamba_jax.files import writing
from posemamba_jax.files.locking import lock_folder
from posemamba_jax.files.metrics_file import read_metrics
from posemamba_jax.model.forward import make_forward
from posemamba_jax.pictures.evaluation import draw_clip, predict_clip
from posemamba_jax.pictures.plots import plot_curves
from posemamba_jax.training import processes, progress, run_log, signals
from posemamba_jax.training.profiling import StepTrace
from posemamba_jax.training.progress import ProgressDisplay
from posemamba_jax.training.run_log import RunLog, check_run_dir
from posemamba_jax.training.setup import Setup, prepare
from posemamba_jax.training.state import TrainState, abstract_state, all_finite, make_state
from posemamba_jax.training.step import compile_train_step, put_batch
from posemamba_jax.training.warm_start import start_from


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


def train(
    config: Config,
    devices: Sequence[Any] | None = None,
    stop: signals.StopRequest | None = None,
) -> Outcome:
    """Trains, evaluates and saves as the configuration says, in `config.run_dir`.

    A run that is interrupted (Ctrl-C, SIGTERM, SIGHUP) ends after the step it is in with a
    checkpoint; before there is a state, at once.
    Resumed, it takes exactly the steps it would have taken. Of several processes
    (`config.distributed`) all have to call this; the first one writes what is to be read.

    Args:
      config: the run.
      devices: to train on; all there are unless given.
      stop: entered where the program began; made here unless given.

    Raises:
      UserError: the configuration, the data or the folder cannot be used, or another program is
          training in it.
    """
    with ExitStack() as stack:
        stop = stop or stack.enter_context(signals.StopRequest())
        processes.start(config.distributed)
        stack.enter_context(processes.leaving_at_once())
        with processes.all_or_none("setting up"):
            setup = prepare(config, devices)
            if processes.is_first():
                with writing.reported_as(f"run_dir: {config.run_dir}"):
                    stack.enter_context(lock_folder(config.run_dir, "run_dir"))
                check_run_dir(setup.config)  # Again: another may have begun a run here meanwhile.
        with ExitStack() as inner:
            run = _Run(setup, inner, stop)
            run.take_steps()
            return run.finish()


class _Run:
    """A run in progress: what is open while it lasts, and where it is.

    Args:
      setup: what it is made of.
      stack: closes what this opens.
      stop: signals that ask to stop.
    """

    def __init__(self, setup: Setup, stack: ExitStack, stop: signals.StopRequest):
        self.setup, self.config, self.first = setup, setup.config, processes.is_first()
        config = self.config
        # Orbax waits for all processes only where a folder is missing, so none may find it later.
        with processes.all_or_none("making the run's folders"):
            for name in ("checkpoints", "best"):
                (Path(config.run_dir) / name).mkdir(parents=True, exist_ok=True)
        self.checkpoints = stack.enter_context(setup.open_checkpoints())
        self.state, saved = self._start()
        stop.defer()  # From here on there is something to save.
        self.identity = {"course": saved["course"], "test_set": setup.identity["test"]}
        self.checkpoints.proven_step = saved["proven_step"]
        with processes.all_or_none("writing into the run's folder"):
            if self.first:
                run_log.set_aside_other_course(config.run_dir, saved["course"])
                run_log.write_run_files(config, setup.skeleton, saved["course"])
            log = RunLog(config.run_dir, int(self.state.step), enabled=self.first)
            self.log = stack.enter_context(log)
        self.step = int(self.state.step)
        self.window: list[dict[str, Any]] = list(saved["window"])
        self.evaluated_step = saved["evaluated_step"]
        self.best_mm = self.checkpoints.claim_best(self.step, self.identity)
        self.report: Report | None = None
        self.diverged = False

        console = None if self.first else Console(quiet=True)
        display = ProgressDisplay(setup.total_steps, self.step, config.train.batch_size, console)
        self.show = stack.enter_context(display)
        progress.say_start(self.show, setup, self.state)
        self.stop = processes.AgreedStop(stop)
        keys = pipeline.batch_keys(setup.train_source)
        self.train_step = compile_train_step(
            config,
            setup.mesh,
            setup.skeleton,
            keys,
            steps_per_epoch=setup.steps_per_epoch,
            total_steps=setup.total_steps,
            say=self.show.say,
        )
        self.show.pause(self.step)
        self.forward = make_forward(config.model, setup.mesh, config.eval.batch_size)
        feed = DevicePrefetch(setup.batches, lambda batch: put_batch(batch, setup.mesh))
        self.feed = stack.enter_context(feed)
        self.trace = stack.enter_context(StepTrace(config.train.profile_steps, config.run_dir))

    def _start(self) -> tuple[TrainState, dict[str, Any]]:
        """Returns the state and progress to go on from: those saved last, or of before step 1."""
        config, mesh = self.config, self.setup.mesh
        if self.checkpoints.latest_step() is None:
            state = make_state(config, mesh)
            if config.train.init_from is not None:
                state = start_from(state, config)
            course = f"{int(processes.from_first(secrets.randbits(48))):012x}"
            fresh = {"evaluated_step": 0, "window": [], "course": course, "proven_step": 0}
            return state, fresh
        if not config.train.resume:
            raise UserError(f"{config.run_dir} holds checkpoints; continue them with --resume")
        state, saved = self.checkpoints.restore(abstract_state(config, mesh))
        self.setup.batches.set_state(saved["pipeline"])
        data, now = saved.get("training_set"), self.setup.identity["train"]
        if data not in (None, now):
            raise UserError(
                f"{config.run_dir}: the files of the training data are not those that the run was "
                f"trained on (fingerprint {now}, was {data}); put them back, or start another run "
                "with --run_dir FOLDER (--train.init_from takes these weights along)"
            )
        # Checkpoints of earlier versions do not say these.
        return state, {"course": None, "proven_step": int(state.step), **saved}

    @property
    def epoch(self) -> float:
        """Passes over the training clips so far."""
        return self.step / self.setup.steps_per_epoch

    @property
    def at_end(self) -> bool:
        """True once all steps of the run are taken."""
        return self.step >= self.setup.total_steps

    def take_steps(self) -> None:
        """Takes steps until the end, a stop, or too many updates that were skipped in a row."""
        train = self.config.train
        while True:
            self.stop.poll()
            evaluation_due = self.at_end or self._is_due(train.eval_every)
            if evaluation_due and self.evaluated_step != self.step and not self._evaluate():
                break
            ends = self.at_end or self.stop or self.diverged
            if self.diverged:
                self._set_aside_bad()
            elif ends or self._is_due(train.save_every) or self._is_due(train.keep_every):
                self._save()
            if ends:
                break
            self._take_step()
            if self.step % train.log_every == 0 or self.at_end:
                self._record()

    def _is_due(self, every: int) -> bool:
        """Tells whether a step ends an epoch that is a multiple of `every`; never for 0."""
        ends_epoch = self.step > 0 and self.step % self.setup.steps_per_epoch == 0
        return ends_epoch and every > 0 and round(self.epoch) % every == 0

    def _take_step(self) -> None:
        with self.trace.before(self.step + 1):
            self.state, metrics = self.train_step(self.state, next(self.feed))
        self.step += 1
        if self.trace.after(self.step, metrics):
            self.show.say(f"steps {self.config.train.profile} traced in {self.trace.folder}")
        self.window.append(metrics)
        self.show.advance(self.step)

    def _record(self) -> None:
        """Shows and writes what was measured since the last time."""
        values = run_log.to_floats(self.window)  # The only place that waits for the device.
        self.window = []
        good = [n for n, row in enumerate(reversed(values)) if not row["skipped"]]
        if good:  # The state before a step whose loss is finite is good.
            self.checkpoints.proven_step = self.step - good[0] - 1
        means = run_log.mean_of_finite(values)
        shown = {key: means[key] for key in ("loss", "pos") if key in means}
        if math.isfinite(self.best_mm):
            shown["best mm"] = self.best_mm
        rate = self.show.update(self.step, self.epoch, shown)
        self.log.write(self.step, self.epoch, {**means, "clips_per_second": rate}, "train")
        most = self.config.train.max_skipped
        self.diverged = progress.report_skipped(self.show, self.state, values, most)

    def _evaluate(self) -> bool:
        """Evaluates and keeps the best state; False, with a checkpoint, if stopped meanwhile."""
        try:
            self.report = evaluate(
                self._predict,
                self.setup.test_source,
                progress=lambda done, total: self.stop.check(),
                **evaluation_options(self.config),
            )
        except signals.Stopped:
            self._save()
            return False
        self.evaluated_step = self.step
        self.log.write(self.step, self.epoch, run_log.figures(self.report), "test")
        error_mm = processes.from_first(self.report.mpjpe_mm)
        if math.isfinite(error_mm):
            self.checkpoints.proven_step = self.step
        if error_mm < self.best_mm:
            self.best_mm = error_mm
            self.checkpoints.save_best(self.state, self._snapshot(), self.config, error_mm)
        words = f"test {self.report.summary()} (best {self.best_mm:.1f} mm)"
        self.show.say(f"epoch {self.epoch:.4g}: {words}")
        self.show.pause(self.step)
        return True

    def _predict(self, poses_2d: Any) -> Any:
        return self.forward(self.state.eval_params, poses_2d)

    def _save(self) -> None:
        """Saves the state, unless nothing can go on from it."""
        if all_finite(self.state):
            self.checkpoints.save(self.state, self._snapshot(), self.config)
        else:
            self.show.say(f"step {self.step} is not saved: its state holds NaN or infinity")

    def _set_aside_bad(self) -> None:
        """Leaves the last state that has shown to be good as the one to resume from."""
        good = self.checkpoints.set_aside_unproven()
        if good is None:
            # Nothing can be lost by it, and where the data is the cause the state is good.
            self._save()
            self.show.say(
                "no state has shown to be good; look at the data, or start again with a lower "
                "optim.learning_rate"
            )
        else:
            self.show.say(
                f"the last good state is step {good}; go on from it with a lower "
                f"optim.learning_rate: python train.py --resume {self.config.run_dir}"
            )

    def _snapshot(self) -> dict[str, Any]:
        """Collects what is saved with the state for a resumed run to go on as if never stopped."""
        return {
            "pipeline": self.feed.get_state(),
            "evaluated_step": self.evaluated_step,
            "window": run_log.to_floats(self.window),
            "proven_step": self.checkpoints.proven_step,
            "training_set": self.setup.identity["train"],
            **self.identity,
        }

    def finish(self) -> Outcome:
        """Waits for the checkpoints; where the run was not stopped, writes report and pictures."""
        run_dir = Path(self.config.run_dir)
        self.checkpoints.wait()
        if self.checkpoints.latest_step() == self.step:
            self.show.say(f"saved step {self.step} in {run_dir / 'checkpoints' / str(self.step)}")
        if self.stop:
            self.show.say(f"stopped; continue with: python train.py --resume {run_dir}")
            return Outcome(self.step, self.stop.exit_code, self.report, self.best_mm)
        source = self.setup.test_source
        middle = len(source) // 2
        # All processes predict, the first one writes.
        pred = predict_clip(self._predict, source, middle, self.config)
        if self.first:
            with writing.reported_as(f"run_dir: {run_dir}"):
                if self.report is not None:
                    self.report.save(run_dir / "report.json")
                plot_curves({"": read_metrics(run_dir)}, run_dir / "curves.png")
                if not draw_clip(pred, source, middle, run_dir / "poses.png"):
                    self.show.say("poses.png is left out: the prediction is not finite")
        code = signals.DIVERGED if self.diverged else signals.FINISHED
        return Outcome(self.step, code, self.report, self.best_mm)
