"""Acclaim motions (AMC): the angles of a skeleton's joints, frame by frame."""

from pathlib import Path

import numpy as np

from posemamba_jax.data.clips import DataError
from posemamba_jax.data.formats.asf import AsfSkeleton
from posemamba_jax.data.motion.kinematics import forward_kinematics, rotation_matrices
from posemamba_jax.files.text_lines import Lines, read_lines


def read_amc(path: str | Path, skeleton: AsfSkeleton) -> np.ndarray:
    """Reads a motion as joint positions.

    Args:
      path: the AMC file.
      skeleton: what `read_asf` made of its subject's ASF file.

    Returns:
      (frames, joints, 3) world millimetres, joints as in `skeleton.hierarchy`.

    Raises:
      DataError: the file is malformed or ends early, or does not fit the skeleton; the message has
        the file and the line.
    """
    values, columns = _read_values(Path(path), skeleton)
    hierarchy = skeleton.hierarchy
    frames, joints = len(values), len(hierarchy.names)
    rotations = np.empty((frames, joints, 3, 3))
    rotations[:] = np.eye(3)
    root_position = np.tile(skeleton.root_position, (frames, 1))
    for name, first in columns.items():
        joint = hierarchy.names.index(name)
        dofs = skeleton.dofs[name]
        # About fixed axes, the rotation that comes first stands rightmost.
        order = [a for a in reversed(skeleton.orders[joint]) if f"r{a.lower()}" in dofs]
        angles = values[:, [first + dofs.index(f"r{axis.lower()}") for axis in order]]
        if skeleton.degrees:
            angles = np.deg2rad(angles)
        turn = rotation_matrices(angles, "".join(order))
        axis = skeleton.axes[joint]
        rotations[:, joint] = axis @ turn @ axis.T
        for k, dof in enumerate(dofs):
            if dof[0] == "t":
                root_position[:, "xyz".index(dof[1])] += skeleton.mm_per_unit * values[:, first + k]
    return forward_kinematics(hierarchy.parents, hierarchy.offsets, rotations, root_position)


def _read_values(path: Path, skeleton: AsfSkeleton) -> tuple[np.ndarray, dict[str, int]]:
    """Reads the (frames, values) of a motion and the first column of each joint.

    A motion repeats the same bones in the same order in every frame. The first frame gives that
    order; all frames are then cut into columns and converted at once, and only where that fails is
    the file gone through line by line for the line to complain about.
    """
    text = read_lines(path)
    lines = Lines(path, text)
    words = [""]
    for words in lines:
        header = words[0].upper()
        if header in (":DEGREES", ":RADIANS") and (header == ":DEGREES") != skeleton.degrees:
            raise lines.error(f"angles are in {header[1:].lower()} here but not in the ASF file")
        if not header.startswith(":"):
            break
    if not _is_frame_number(words):
        raise lines.error("no frames: expected a frame number after the header")

    start = lines.number - 1
    layout: dict[str, int] = {}
    width = 0
    for words in lines:
        if _is_frame_number(words):
            break
        name = words[0]
        if name not in skeleton.dofs or name in layout:
            problem = "a second line for" if name in layout else "no degrees of freedom in the ASF:"
            raise lines.error(f"{problem} {name!r}")
        _check_values(lines, words, skeleton)
        layout[name] = width
        width += len(skeleton.dofs[name])
    absent = [name for name in skeleton.dofs if name not in layout]
    if absent:
        raise lines.error(f"the first frame has no line for {', '.join(absent)}")

    names = ["", *layout]
    rows = [line.split("#", 1)[0].split() for line in text[start:]]
    rows = [words for words in rows if words]
    columns = []
    try:
        for k, name in enumerate(names):
            of_bone = rows[k :: len(names)]
            if name and any(words[0] != name for words in of_bone):
                raise ValueError
            columns.append(np.array([words[1:] if name else words for words in of_bone], float))
        values = np.concatenate(columns[1:], axis=1)
    except ValueError:
        values = None
    if values is None or values.shape[1] != width or not np.isfinite(values).all():
        raise _find_fault(Lines(path, text), skeleton, start, names)
    return values, layout


def _is_frame_number(words: list[str]) -> bool:
    return len(words) == 1 and words[0].isdecimal()


def _check_values(lines: Lines, words: list[str], skeleton: AsfSkeleton) -> None:
    count = len(skeleton.dofs[words[0]])
    if len(words) != 1 + count:
        raise lines.error(f"{words[0]!r} needs {count} value(s), got {len(words) - 1}")
    lines.floats(words[1:], count, repr(words[0]))


def _find_fault(lines: Lines, skeleton: AsfSkeleton, start: int, names: list[str]) -> DataError:
    """Makes the error of the first line that does not continue the pattern of the first frame."""
    at = 0
    for words in lines:
        if lines.number <= start:
            continue
        expected = names[at] or "a frame number"
        if not (words[0] == names[at] if names[at] else _is_frame_number(words)):
            return lines.error(f"expected {expected}, got {' '.join(words)[:60]!r}")
        if names[at]:
            _check_values(lines, words, skeleton)
        at = (at + 1) % len(names)
    return lines.error(f"the file ends inside a frame, before {names[at] or 'its end'}")
