"""What a person sees of a run: a progress bar in a terminal, plain lines elsewhere."""

import time
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

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
