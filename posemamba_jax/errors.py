"""The errors that programs show as one line, without a traceback."""

import reprlib

_shortened = reprlib.Repr()
_shortened.maxstring = _shortened.maxother = 120


class UserError(Exception):
    """Something the user can put right; programs print its text and exit with code 2."""


class DataError(UserError, ValueError):
    """Data that cannot be used; the message names the file or source and what to do."""


class KeypointError(UserError, ValueError):
    """A keypoint file, or what was said about it, cannot be used. The message is one line."""


class ConfigError(UserError, ValueError):
    """A setting that cannot be used: an unknown key, a bad value, or values that contradict.

    Attributes:
      problem: what is wrong with it.
      key: path of the setting, such as `optim.learning_rate`; empty where there is none.
    """

    def __init__(self, problem: str, *, key: str = ""):
        super().__init__(f"{key}: {problem}" if key else problem)
        self.problem, self.key = problem, key


def describe_error(error: BaseException) -> str:
    """Says an error in one line; one of the system as its file and the reason.

    Args:
      error: anything that was raised.

    Returns:
      Text such as "runs/a: Permission denied".
    """
    if isinstance(error, MemoryError):
        return f"the memory does not suffice{f': {error}' if str(error) else ''}"
    if isinstance(error, OSError) and not isinstance(error, UserError) and error.strerror:
        if error.filename is None:
            return error.strerror
        name = error.filename if isinstance(error.filename, str) else ascii(error.filename)
        return f"{name}: {error.strerror}"
    return " ".join(str(error).split()) or type(error).__name__


def as_word(text: object) -> str:
    """Writes text as it stands where it can be printed in a line, else with escapes."""
    return str(text) if str(text).isprintable() else ascii(str(text))


def shorten(value: object) -> str:
    """Writes a value as `repr` does, but only the beginning of what is long or nested deeply."""
    return _shortened.repr(value)
