"""Reading text formats line by line, with errors that say where."""

from pathlib import Path

import numpy as np

from posemamba_jax.errors import DataError
from posemamba_jax.files.reading import read_whole

# An hour of motion capture at 120 Hz is a third of this.
MAX_BYTES = 1 << 30


def read_lines(path: Path) -> list[str]:
    """Reads the lines of a file, whatever its line ends.

    Raises:
      DataError: it cannot be read.
    """
    # Latin-1 takes any bytes: odd characters in a comment or a name are no reason to stop.
    return read_whole(path, MAX_BYTES).decode("latin-1").splitlines()


class Lines:
    """The lines of a text file that say something, with their numbers, for error messages."""

    def __init__(self, path: Path, lines: list[str] | None = None):
        self.path = path
        self.number = 0
        self._rest = enumerate(read_lines(path) if lines is None else lines, start=1)
        self._pushed = None

    def __iter__(self):
        return self

    def __next__(self) -> list[str]:
        if self._pushed is not None:
            words, self._pushed = self._pushed, None
            return words
        for number, line in self._rest:
            self.number = number
            words = line.split("#", 1)[0].split()
            if words:
                return words
        raise StopIteration

    def push_back(self, words: list[str]) -> None:
        self._pushed = words

    def error(self, message: str) -> DataError:
        return DataError(f"{self.path}:{self.number}: {message}")

    def floats(self, words: list[str], count: int, what: str) -> np.ndarray:
        try:
            values = np.array([float(word) for word in words[:count]])
        except ValueError:
            values = np.empty(0)
        if len(values) != count or not np.isfinite(values).all():
            raise self.error(f"{what} needs {count} finite number(s), got {' '.join(words)!r}")
        return values
