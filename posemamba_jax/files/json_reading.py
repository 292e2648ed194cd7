"""Reading untrusted JSON: every complaint names the file, the place and what was expected."""

import json
from pathlib import Path
from typing import Any

import numpy as np

from posemamba_jax.errors import KeypointError
from posemamba_jax.files.reading import read_whole

# A frame number is also an index into dense arrays, so an absurd one must not size them.
MAX_FRAMES = 1_000_000
# An hour of a crowd is smaller; parsed, JSON takes several times its size in memory.
MAX_JSON_BYTES = 1 << 30
# No image is this wide; larger numbers mean a broken or a hostile file.
MAX_COORDINATE = 1e6


def quote(value: Any, limit: int = 60) -> str:
    """Renders any value shortly; lone surrogates and control characters are escaped."""
    if isinstance(value, str):
        text = ascii(value[: limit + 1])
    elif isinstance(value, dict):
        keys = [quote(key, 20) for _, key in zip(range(6), value, strict=False)]
        text = f"an object with keys {', '.join(keys)}" if keys else "an empty object"
        limit *= 3
    elif isinstance(value, list):
        text = f"a list of {len(value)}"
    elif value is None or isinstance(value, bool):
        text = json.dumps(value)
    elif isinstance(value, int) and value.bit_length() > 200:
        text = "a very large integer"
    else:
        text = ascii(value)
    return text if len(text) <= limit else text[: limit - 3] + "..."


def load_json(path: Path) -> Any:
    """Parses a JSON file; raises KeypointError if it is no readable JSON."""
    content = read_whole(path, MAX_JSON_BYTES, KeypointError)
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise KeypointError(
            f"{path}: not UTF-8 text at byte {error.start}; expected a JSON file"
        ) from None
    if not text.strip():
        raise KeypointError(f"{path}: the file is empty; expected JSON")
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        at_end = error.pos >= len(text.rstrip()) or error.msg.startswith("Unterminated")
        hint = "; the file ends too early (truncated?)" if at_end else ""
        raise KeypointError(
            f"{path}: not valid JSON, line {error.lineno} column {error.colno}: {error.msg}{hint}"
        ) from None
    except RecursionError:
        raise KeypointError(f"{path}: JSON nested too deeply to be a keypoint file") from None
    except ValueError as error:  # integers of thousands of digits
        raise KeypointError(f"{path}: not usable JSON: {quote(str(error), 120)}") from None


def member(container: Any, key: str, path: Path, where: str) -> Any:
    """Takes `container[key]` of a JSON object, or raises KeypointError."""
    if not isinstance(container, dict):
        raise KeypointError(
            f"{path}: {where}: expected an object with {key!r}, found {quote(container)}"
        )
    if key not in container:
        raise KeypointError(f"{path}: {where}: {key!r} is missing, found {quote(container)}")
    return container[key]


def list_member(container: Any, key: str, path: Path, where: str) -> list:
    value = member(container, key, path, where)
    if not isinstance(value, list):
        raise KeypointError(f"{path}: {where}, {key!r}: expected a list, found {quote(value)}")
    return value


def number_array(value: Any, path: Path, where: str, expected: str) -> np.ndarray:
    """Makes a list of numbers (nested evenly) a float64 array of finite, plausible values."""
    complaint = f"{path}: {where}: expected {expected}, found"
    if not isinstance(value, list):
        raise KeypointError(f"{complaint} {quote(value)}")
    try:
        array = np.array(value)
    except ValueError:
        raise KeypointError(f"{complaint} lists of unequal lengths") from None
    if array.size and array.dtype.kind not in "iuf":
        raise KeypointError(f"{complaint} {_first_non_number(value)}")
    array = array.astype(np.float64)
    _check_range(array, path, where)
    return array


def _first_non_number(value: Any) -> str:
    while isinstance(value, list):
        odd = [v for v in value if not isinstance(v, int | float) or isinstance(v, bool)]
        if not odd:
            return quote(max(value, key=abs)) if value else "an empty list"
        value = odd[0]
    return quote(value)


def _check_range(array: np.ndarray, path: Path, where: str) -> None:
    if not np.isfinite(array).all():
        flat = int(np.flatnonzero(~np.isfinite(array.ravel()))[0])
        raise KeypointError(
            f"{path}: {where}: number {flat} is {array.ravel()[flat]}; expected finite numbers "
            f"(a missing joint has confidence 0)"
        )
    if array.size and np.abs(array).max() > MAX_COORDINATE:
        raise KeypointError(
            f"{path}: {where}: holds {np.abs(array).max():.3g}; expected coordinates below "
            f"{MAX_COORDINATE:.0e}"
        )


def confidences(values: np.ndarray, path: Path, where: str) -> np.ndarray:
    """Checks confidences: a negative one means that columns were mixed up."""
    if (values < 0).any():
        raise KeypointError(
            f"{path}: {where}: a confidence is {values.min():.4g}; expected 0 or more (are the "
            f"columns x, y, confidence?)"
        )
    return values


def flat_triples(value: Any, path: Path, where: str) -> np.ndarray:
    """Makes [x0, y0, c0, x1, ...] a (joints, 3) float32 array."""
    numbers = number_array(value, path, where, "a flat list x0, y0, confidence0, x1, ...")
    if numbers.ndim != 1 or numbers.size % 3 or not numbers.size:
        raise KeypointError(
            f"{path}: {where}: expected a flat list of 3 numbers per joint, found shape "
            f"{list(numbers.shape)}"
        )
    triples = numbers.reshape(-1, 3)
    confidences(triples[:, 2], path, where)
    return triples.astype(np.float32)


def integer(value: Any, path: Path, where: str) -> int:
    """Checks a whole number that an identity or a frame number may be."""
    whole = isinstance(value, int) and not isinstance(value, bool)
    if isinstance(value, float) and value.is_integer():
        whole, value = True, int(value)
    if not whole or abs(value) > 2**53:
        raise KeypointError(f"{path}: {where}: expected a whole number, found {quote(value)}")
    return value


def frame_number(value: Any, path: Path, where: str) -> int:
    number = integer(value, path, where)
    if not 0 <= number < 1000 * MAX_FRAMES:
        raise KeypointError(f"{path}: {where}: {quote(number)} is no frame number")
    return number


def image_size(value: Any, path: Path, where: str) -> tuple[int, int]:
    """Reads the [width, height] of a file as whole numbers above 0."""
    pair = value if isinstance(value, list | tuple) and len(value) == 2 else [None, None]
    good = [isinstance(v, int) and not isinstance(v, bool) and 0 < v < MAX_COORDINATE for v in pair]
    if not all(good):
        raise KeypointError(
            f"{path}: {where}: expected [width, height] in pixels, found {quote(value)}"
        )
    return pair[0], pair[1]


def frame_rate(value: Any, path: Path, where: str) -> float:
    good = isinstance(value, int | float) and not isinstance(value, bool) and 0 < value < 1e5
    if not good:
        raise KeypointError(f"{path}: {where}: expected frames per second, found {quote(value)}")
    return float(value)
