"""What a person sees of a run: a progress bar in a terminal, plain lines elsewhere."""

import math
import time
from typing import Any

import jax
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

from posemamba_jax.training.setup import Setup
from posemamba_jax.training.state import TrainState

# Seconds between lines where there is no terminal.
_LINE_EVERY = 5.0


class ProgressDisplay:
    """Shows steps, losses, clips per second and the time left.

    Args:
      total: steps of the whole run.
      done: steps taken before.
      batch_size: clips per step.
      console: where to; the terminal unless given.
    """

    def __init__(self, total: int, done: int, batch_size: int, console: Console | None = None):
        self.console = console or Console(soft_wrap=True, highlight=False)
        self._total, self._done, self._batch_size = total, done, batch_size
        self._last_line = 0.0
        self._rate = 0.0
        self._bar: Progress | None = None
        self._task: Any = None
        if self.console.is_terminal:
            columns = (BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[text]}"))
            self._bar = Progress(*columns, console=self.console)
            self._task = self._bar.add_task("", total=total, completed=done, text="")

    def __enter__(self) -> "ProgressDisplay":
        if self._bar:
            self._bar.start()
        self._mark = (time.monotonic(), self._done)
        return self

    def __exit__(self, *_: Any) -> None:
        if self._bar:
            self._bar.stop()

    def advance(self, step: int) -> None:
        """Moves the bar; a step counts when it is handed to the device."""
        if self._bar:
            self._bar.update(self._task, completed=step)

    def pause(self, step: int) -> None:
        """Restarts the clock of the rate, after time that was not spent on steps."""
        self._mark = (time.monotonic(), step)

    def update(self, step: int, epoch: float, values: dict[str, float]) -> float:
        """Shows values that came from the device and returns clips per second since the last."""
        now, (then, before) = time.monotonic(), self._mark
        rate = (step - before) / max(now - then, 1e-9)
        # The last rate jumps about; the time left goes by a running mean of it.
        self._rate = rate if not self._rate else 0.7 * self._rate + 0.3 * rate
        self._mark = (now, step)
        left = _clock((self._total - step) / self._rate) if self._rate else "?"
        parts = [f"{name} {value:.4g}" for name, value in values.items()]
        parts += [f"{rate * self._batch_size:.1f} clips/s", f"{left} left"]
        if self._bar:
            text = f"epoch {epoch:.1f}  " + "  ".join(parts)
            self._bar.update(self._task, completed=step, text=text)
        elif now - self._last_line >= _LINE_EVERY or step == self._total:
            self._last_line = now
            self.say(f"step {step}/{self._total}  epoch {epoch:.2f}  " + "  ".join(parts))
        return rate * self._batch_size

    def say(self, text: str) -> None:
        """Prints a line above the bar."""
        self.console.print(text, markup=False)


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"


def say_start(show: ProgressDisplay, setup: Setup, state: TrainState) -> None:
    """Says what is about to be trained on what, and where the run begins."""
    config, mesh = setup.config, setup.mesh
    params = sum(leaf.size for leaf in jax.tree.leaves(state.params))
    devices, kind = mesh.devices.size, mesh.devices.flat[0].device_kind
    show.say(
        f"{setup.train_source.name}: {len(setup.train_source)} clips to train on, "
        f"{len(setup.test_source)} to test, {config.data.clip_len} frames each; "
        f"{setup.steps_per_epoch} steps per epoch"
    )
    show.say(
        f"model: {params:,} parameters, dim {config.model.dim}, depth {config.model.depth}; "
        f"{devices} {kind} device{'s' if devices > 1 else ''}; results in {config.run_dir}"
    )
    if int(state.step):
        changed = "".join(f"\n  changed: {change}" for change in setup.changed)
        show.say(f"resuming at step {int(state.step)}{changed}")
    elif config.train.resume:
        show.say(f"{config.run_dir}: no checkpoint yet, starting at step 0")


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
