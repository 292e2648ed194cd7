"""Keeps what libraries say on their own account off the terminal."""

import sys
from typing import Any


def quiet_libraries() -> None:
    """Drops what tensorstore cannot deliver once reading a damaged file has failed.

    It calls back into an event loop that was closed when the error was raised; Python prints that
    with a traceback although nobody is left to be told.
    """
    before = sys.unraisablehook

    def hook(unraisable: Any) -> None:
        error = unraisable.exc_value
        if isinstance(error, RuntimeError) and str(error) == "Event loop is closed":
            return
        before(unraisable)

    sys.unraisablehook = hook
