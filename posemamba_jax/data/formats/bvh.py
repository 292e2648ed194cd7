"""BVH motion capture files: a joint hierarchy and its motion in one text file."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from posemamba_jax.data.clips import DataError
from posemamba_jax.data.motion.kinematics import Hierarchy, forward_kinematics, rotation_matrices
from posemamba_jax.files.text_lines import read_lines

_POSITIONS = ("xposition", "yposition", "zposition")
_ROTATIONS = ("xrotation", "yrotation", "zrotation")


@dataclass(frozen=True)
class BvhMotion:
    """What a BVH file holds, with positions already worked out.

    Attributes:
      hierarchy: joints by the file's names, end sites as "<joint> end"; offsets in millimetres.
      positions: (frames, joints, 3) world millimetres.
      fps: frames per second.
    """

    hierarchy: Hierarchy
    positions: np.ndarray
    fps: float


class _Words:
    """The words of the hierarchy, whose lines may be broken anywhere, for error messages."""

    def __init__(self, path: Path, lines: list[str]):
        self.path = path
        self.lines = lines
        self.row = 0
        self._words: list[str] = []  # what is left of the current line, last word first

    def next(self, what: str) -> str:
        while not self._words:
            if self.row >= len(self.lines):
                raise self.error(f"the file ends where {what} was expected")
            self._words = self.lines[self.row].split()[::-1]
            self.row += 1
        return self._words.pop()

    def joint_name(self) -> str:
        """Takes the rest of the line, or what of it is before an opening brace."""
        words = []
        while self._words and self._words[-1] != "{":
            words.append(self._words.pop())
        return " ".join(words)

    def expect(self, word: str) -> None:
        got = self.next(repr(word))
        if got.lower() != word.lower():
            raise self.error(f"expected {word!r}, got {got!r}")

    def number(self, what: str) -> float:
        word = self.next(what)
        try:
            value = float(word)
        except ValueError:
            value = np.nan
        if not np.isfinite(value):
            raise self.error(f"{what} must be a finite number, got {word!r}")
        return value

    def error(self, message: str) -> DataError:
        return DataError(f"{self.path}:{self.row}: {message}")


def read_bvh(path: str | Path, *, mm_per_unit: float) -> BvhMotion:
    """Reads a BVH file.

    Position channels replace the joint's offset. Rotation channels may come in any order; the first
    is the outermost.

    Args:
      path: the file.
      mm_per_unit: what the file's units are, which it does not say itself: 10 for centimetres.

    Raises:
      DataError: the file is malformed or ends early; the message has the file and the line.
    """
    path = Path(path)
    words = _Words(path, read_lines(path))
    words.expect("HIERARCHY")
    names, parents, offsets, channels = _read_hierarchy(words)
    frames, fps = _read_motion_header(words)
    values = _read_values(words, frames, sum(len(c) for c in channels))

    rotations = np.empty((frames, len(names), 3, 3))
    rotations[:] = np.eye(3)
    moving = np.tile(np.array(offsets), (frames, 1, 1))
    first = 0
    for joint, kinds in enumerate(channels):
        columns = values[:, first : first + len(kinds)]
        first += len(kinds)
        turns = [k for k, kind in enumerate(kinds) if kind in _ROTATIONS]
        order = "".join(kinds[k][0] for k in turns)
        rotations[:, joint] = rotation_matrices(np.deg2rad(columns[:, turns]), order)
        for k, kind in enumerate(kinds):
            if kind in _POSITIONS:
                moving[:, joint, _POSITIONS.index(kind)] = columns[:, k]
    moving *= mm_per_unit
    hierarchy = Hierarchy(tuple(names), tuple(parents), mm_per_unit * np.array(offsets))
    positions = forward_kinematics(hierarchy.parents, moving, rotations, moving[:, 0])
    return BvhMotion(hierarchy, positions, float(fps))


def _read_hierarchy(words: _Words):
    names: list[str] = []
    parents: list[int] = []
    offsets: list[list[float]] = []
    channels: list[list[str]] = []
    words.expect("ROOT")
    open_joints: list[int] = []
    kind = "ROOT"
    while True:
        if kind in ("ROOT", "JOINT"):
            name = words.joint_name()
            if not name or name in names:
                raise words.error(f"a joint needs a name of its own, got {name!r}")
        elif kind == "END":
            words.joint_name()
            name = f"{names[open_joints[-1]]} end"
        if kind == "}":
            open_joints.pop()
            if not open_joints:
                return names, parents, offsets, channels
        else:
            words.expect("{")
            words.expect("OFFSET")
            offsets.append([words.number("an offset") for _ in range(3)])
            parents.append(open_joints[-1] if open_joints else -1)
            names.append(name)
            channels.append([])
            if kind == "END":
                words.expect("}")
            else:
                open_joints.append(len(names) - 1)
                channels[-1] = _read_channels(words)
        kind = words.next("JOINT, End Site or '}'").upper()
        if kind not in ("JOINT", "END", "}"):
            raise words.error(f"expected JOINT, End Site or '}}', got {kind!r}")


def _read_channels(words: _Words) -> list[str]:
    words.expect("CHANNELS")
    count = words.number("the number of channels")
    if count not in range(7):
        raise words.error(f"a joint has 0 to 6 channels, got {count:g}")
    kinds = [words.next("a channel").lower() for _ in range(int(count))]
    wrong = [kind for kind in kinds if kind not in _POSITIONS + _ROTATIONS]
    if wrong or len(set(kinds)) != len(kinds):
        raise words.error(f"channels must be Xposition .. Zrotation, each once, got {kinds}")
    return kinds


def _read_motion_header(words: _Words) -> tuple[int, float]:
    words.expect("MOTION")
    words.expect("Frames:")
    frames = words.number("the number of frames")
    if frames < 1 or frames != int(frames):
        raise words.error(f"the number of frames must be at least 1, got {frames:g}")
    words.expect("Frame")
    words.expect("Time:")
    frame_time = words.number("the frame time")
    if not 1e-4 <= frame_time <= 1:
        raise words.error(f"the frame time must be 0.0001 to 1 seconds, got {frame_time:g}")
    # Times are written with few digits: 0.00833 is meant to be 120 Hz. (29.97 Hz stays.)
    fps = 1 / frame_time
    return int(frames), round(fps) if abs(fps / max(round(fps), 1) - 1) < 5e-4 else fps


def _read_values(words: _Words, frames: int, width: int) -> np.ndarray:
    """Reads (frames, width) numbers, a line for each frame."""
    rows = [
        (number, line.split())
        for number, line in enumerate(words.lines[words.row :], start=words.row + 1)
        if not line.isspace() and line
    ]
    for words.row, row in rows[:frames]:
        if len(row) != width:
            raise words.error(f"the hierarchy has {width} channels, this frame has {len(row)}")
    if len(rows) != frames:
        words.row = len(words.lines)
        raise words.error(f"the header promises {frames} frames, the file has {len(rows)}")
    try:
        values = np.array([row for _, row in rows], float).reshape(frames, width)
    except ValueError:
        values = np.full((frames, width), np.nan)
    if not np.isfinite(values).all():
        for number, row in rows:
            words.row, words._words = number, row[::-1]
            for _ in row:
                words.number("a channel's value")
    return values
