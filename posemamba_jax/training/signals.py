"""Ctrl-C, SIGTERM and SIGHUP: an end at once before training, then at the end of the step."""

import os
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

    Until `defer` is called there is nothing to save, and a signal ends the program at once with
    its exit code: by SystemExit, so that files are closed and unfinished ones removed, and without
    it in the middle of an import, which has none (C++ that is being loaded ends the process on a
    Python error, or reports another one). Where Python drops the SystemExit, as it does in a
    garbage collector's callback, it is raised again. After `defer` the first signal is noted, and
    a second SIGINT interrupts at once. A signal that was ignored before, as SIGHUP is under nohup,
    stays ignored.

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
        self._hook = sys.unraisablehook

    def __enter__(self) -> "StopRequest":
        if threading.current_thread() is threading.main_thread():
            for number in _SIGNALS:
                if signal.getsignal(number) != signal.SIG_IGN:
                    self._before[number] = signal.signal(number, self._handle)
            self._hook, sys.unraisablehook = sys.unraisablehook, self._handle_unraisable
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: Any) -> None:
        if sys.unraisablehook == self._handle_unraisable:  # Another may have been put before it.
            sys.unraisablehook = self._hook
        while self._before:
            signal.signal(*self._before.popitem())
        if self and not self._deferred and kind is not None and not issubclass(kind, SystemExit):
            raise SystemExit(self.exit_code)  # What a library made of the SystemExit.

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
        before = self.exit_code
        self.exit_code = INTERRUPTED if number == signal.SIGINT else PREEMPTED
        if self._deferred:
            if number == signal.SIGINT and before == INTERRUPTED:
                raise KeyboardInterrupt
            return
        if before is None:
            print(self._said, file=sys.stderr)
        if _is_importing(frame):
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(self.exit_code)
        raise SystemExit(self.exit_code)

    def _handle_unraisable(self, unraisable: Any) -> None:
        if self and not self._deferred and isinstance(unraisable.exc_value, SystemExit):
            # A signal that is raised here would be handled, and dropped, here as well.
            timer = threading.Timer(0.01, self._repeat)
            timer.daemon = True
            timer.start()
        else:
            self._hook(unraisable)

    def _repeat(self) -> None:
        if self._before:
            number = signal.SIGINT if self.exit_code == INTERRUPTED else signal.SIGTERM
            os.kill(os.getpid(), number)


def _is_importing(frame: FrameType | None) -> bool:
    while frame is not None and not frame.f_code.co_filename.startswith("<frozen importlib"):
        frame = frame.f_back
    return frame is not None
