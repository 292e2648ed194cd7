"""Ctrl-C, SIGTERM and SIGHUP: an end at once before training, then at the end of the step."""

import signal
import sys
import threading
from types import FrameType
from typing import Any

# Exit codes of train.py; 1 and 2 are a crash and a user's error.
FINISHED = 0
DIVERGED = 3
PREEMPTED = 75  # EX_TEMPFAIL of sysexits.h: the same command with --resume goes on
INTERRUPTED = 130  # what shells report for Ctrl-C

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Stopped(Exception):
    """Raised where work is left in the middle because a stop was requested."""


class StopRequest:
    """While entered, signals that ask to stop end the program as the documents say.

    Until `defer` is called there is nothing to save, and the first one ends the program at once
    with its exit code. After that the first one is noted, and a second SIGINT interrupts at once.
    A signal that was ignored before, as SIGHUP is under nohup, stays ignored.

    Handlers can only be set in the main thread; elsewhere this does nothing.

    Args:
      said: what the program says when it ends at once.
    """

    def __init__(
        self, said: str = "stopped before the first step; there is nothing to save yet"
    ) -> None:
        self._said = said
        self.exit_code: int | None = None
        self._deferred = False
        self._before: dict[int, Any] = {}

    def __enter__(self) -> "StopRequest":
        if threading.current_thread() is threading.main_thread():
            for number in _SIGNALS:
                if signal.getsignal(number) != signal.SIG_IGN:
                    self._before[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *_: Any) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def __bool__(self) -> bool:
        return self.exit_code is not None

    def defer(self) -> None:
        """Notes signals from now on; one ends the program where its state can be saved."""
        self._deferred = True

    def check(self) -> None:
        """Raises Stopped if a stop was requested."""
        if self:
            raise Stopped

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT and self.exit_code == INTERRUPTED:
            raise KeyboardInterrupt
        self.exit_code = INTERRUPTED if number == signal.SIGINT else PREEMPTED
        if not self._deferred:
            print(self._said, file=sys.stderr)
            raise SystemExit(self.exit_code)
