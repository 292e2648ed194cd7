"""Runs a program, and says in one line what is wrong with a user's input."""

import os
import sys
import typing
from collections.abc import Callable, Sequence
from typing import Any

from posemamba_jax.errors import UserError


def run_program(main: Callable[[Sequence[str]], int]) -> typing.NoReturn:
    """Runs a program: a user's error becomes its text on stderr and exit code 2.

    Set POSEMAMBA_TRACEBACK=1 to see where such an error came from.
    """
    quiet_libraries()
    try:
        code = main(sys.argv[1:])
    except UserError as error:
        if os.environ.get("POSEMAMBA_TRACEBACK"):
            raise
        print(f"error: {error}", file=sys.stderr)
        code = 2
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        code = 130
    sys.exit(code)


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
