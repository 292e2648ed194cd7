"""Ctrl-C and SIGTERM as a request to stop at the end of the step."""

import signal
import threading
from types import FrameType
from typing import Any

# Exit codes of train.py; 1 and 2 are a crash and a user's error.
FINISHED = 0
DIVERGED = 3
PREEMPTED = 75  # EX_TEMPFAIL of sysexits.h: the same command with --resume goes on
INTERRUPTED = 130  # what shells report for Ctrl-C


class Stopped(Exception):
    """Raised where work is left in the middle because a stop was requested."""


class StopRequest:
    """While entered, the first SIGINT or SIGTERM is noted and a second SIGINT interrupts at once.

    Handlers can only be set in the main thread; elsewhere this does nothing.
    """

    def __init__(self) -> None:
        self.exit_code: int | None = None
        self._before: dict[int, Any] = {}

    def __enter__(self) -> "StopRequest":
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *_: Any) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def __bool__(self) -> bool:
        return self.exit_code is not None

    def check(self) -> None:
        """Raises Stopped if a stop was requested."""
        if self:
            raise Stopped

    def _note(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT and self.exit_code == INTERRUPTED:
            raise KeyboardInterrupt
        self.exit_code = INTERRUPTED if number == signal.SIGINT else PREEMPTED
