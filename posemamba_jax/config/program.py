"""Runs a program, and says in one line what is wrong with a user's input or with the machine."""

import io
import logging
import os
import sys
import typing
from collections.abc import Callable, Sequence
from typing import Any

import jax
from jax.experimental.compilation_cache import compilation_cache

from posemamba_jax.errors import UserError, describe_error
from posemamba_jax.files.reading import user_path

# Exit code of a program that could not do what it was asked to.
REFUSED = 2
INTERRUPTED = 130


def run_program(main: Callable[[Sequence[str]], int]) -> typing.NoReturn:
    """Runs a program on the command line's arguments and exits with its code.

    Set POSEMAMBA_TRACEBACK=1 to see where an error came from.
    """
    quiet_libraries()
    guard_outputs()
    sys.exit(run_main(main, sys.argv[1:]))


def run_main(main: Callable[[Sequence[str]], int], argv: Sequence[str]) -> int:
    """Runs a program's `main`, and turns what stops it into one line on stderr.

    Args:
      main: takes the arguments and returns the exit code.
      argv: the arguments, without the program's name.

    Returns:
      What `main` returns; 2 for a user's error, and for a file, a folder or memory that the machine
      refuses; 130 for Ctrl-C. Anything else that `main` raises is a bug and keeps its traceback.
    """
    try:
        return main(argv)
    except (UserError, OSError, MemoryError) as error:
        if os.environ.get("POSEMAMBA_TRACEBACK"):
            raise
        text = str(error) if isinstance(error, UserError) else describe_error(error)
        print(f"error: {text}", file=sys.stderr)
        return REFUSED
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return INTERRUPTED


def guard_outputs() -> None:
    """Makes writing to the terminal never stop a program.

    Characters that the terminal's encoding lacks, and bytes of file names that are no text, are
    written as escapes. An output that is closed (`| head`) or full is given up with one word on
    stderr, and the program goes on: its results are in files.
    """
    for name in ("stdout", "stderr"):
        # Where the descriptor is closed, the next file opened must not take its place.
        stream = getattr(sys, name) or open(os.devnull, "w")  # noqa: SIM115
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
        setattr(sys, name, GuardedOutput(stream, name))


class GuardedOutput:
    """A text stream that goes on as `/dev/null` once it cannot be written."""

    def __init__(self, stream: typing.TextIO, name: str):
        self._stream, self._name = stream, name

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        """Writes text, or drops it where the output is gone."""
        self._attempt(self._stream.write, text)
        return len(text)

    def flush(self) -> None:
        """Hands on what was written, or drops it where the output is gone."""
        self._attempt(self._stream.flush)

    def _attempt(self, call: Callable, *args: str) -> None:
        try:
            call(*args)
        except OSError as error:
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, self._stream.fileno())  # What is still buffered goes there too.
            os.close(null)
            if self._name == "stdout":
                problem = f"the standard output cannot be written ({error.strerror})"
                print(f"{problem}; going on without it", file=sys.stderr)


def set_compilation_cache(folder: str | None) -> None:
    """Keeps compiled programs between runs; a folder set in JAX's own way wins.

    Args:
      folder: where to keep them; None changes nothing.
    """
    if folder is None or os.environ.get("JAX_COMPILATION_CACHE_DIR"):
        return
    jax.config.update("jax_compilation_cache_dir", str(user_path(folder)))
    # A restart compiles many small programs besides the step; JAX keeps only slow ones by default.
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)
    # Whether there is a cache was decided when the process first compiled something.
    compilation_cache.reset_cache()


def quiet_libraries() -> None:
    """Keeps libraries from printing what a program already says in its own words.

    Orbax logs, with tracebacks, what it then raises. Tensorstore calls back into an event loop that
    was closed when reading a damaged file failed; Python prints that with a traceback although
    nobody is left to be told.
    """
    for name in ("absl", "asyncio"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    before = sys.unraisablehook

    def hook(unraisable: Any) -> None:
        error = unraisable.exc_value
        if isinstance(error, RuntimeError) and str(error) == "Event loop is closed":
            return
        before(unraisable)

    sys.unraisablehook = hook
