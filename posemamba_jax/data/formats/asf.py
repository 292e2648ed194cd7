"""Acclaim skeletons (ASF), the first half of the format of the CMU motion capture database.

An ASF file lists bones (direction, length, the axes their angles are about) and how they hang
together. The motion is in AMC files, see `posemamba_jax.data.formats.amc`.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from posemamba_jax.data.clips import DataError
from posemamba_jax.data.motion.kinematics import Hierarchy, rotation_matrices
from posemamba_jax.files.text_lines import Lines

MM_PER_INCH = 25.4
_DEGREES_OF_FREEDOM = ("rx", "ry", "rz", "tx", "ty", "tz", "l")


@dataclass(frozen=True)
class AsfSkeleton:
    """A skeleton as an ASF file gives it.

    Attributes:
      hierarchy: joints named after the bone that starts there ("lfemur" is the left hip), the
        bones' far ends without children as "<bone> end"; offsets in millimetres, in the axes of the
        world at rest.
      axes: (joints, 3, 3) rotation of the axes that each joint's angles are about.
      orders: for each joint the order of its rotations, about fixed axes: "XYZ" is x first.
      dofs: for each joint with angles its degrees of freedom in the order of the AMC file; the
        root's are those of its `order` line.
      root_position: (3,) millimetres, added to the root's motion.
      mm_per_unit: millimetres per unit of length in both files.
      degrees: whether angles are degrees.
    """

    hierarchy: Hierarchy
    axes: np.ndarray
    orders: tuple[str, ...]
    dofs: dict[str, tuple[str, ...]]
    root_position: np.ndarray
    mm_per_unit: float
    degrees: bool


@dataclass
class _Bone:
    name: str
    direction: np.ndarray
    length: float
    axis: np.ndarray
    axis_order: str
    dofs: tuple[str, ...]


def read_asf(path: str | Path, *, length_unit_mm: float = MM_PER_INCH) -> AsfSkeleton:
    """Reads a skeleton.

    Args:
      path: the ASF file.
      length_unit_mm: what the file's `length` unit counts: lengths are value / unit inches in the
        CMU database.

    Raises:
      DataError: the file is malformed or ends early; the message has the file and the line.
    """
    lines = Lines(Path(path))
    units = {"length": 1.0, "angle": "deg"}
    root = {"order": (), "axis": "XYZ", "position": np.zeros(3), "orientation": np.zeros(3)}
    bones: dict[str, _Bone] = {}
    children: dict[str, list[str]] = {}
    seen = set()
    for words in lines:
        section = words[0].lower()
        seen.add(section)
        if section == ":units":
            _read_units(lines, units)
        elif section == ":root":
            _read_root(lines, root)
        elif section == ":bonedata":
            _read_bones(lines, bones)
        elif section == ":hierarchy":
            _read_hierarchy(lines, bones, children)
    missing = [s for s in (":root", ":bonedata", ":hierarchy") if s not in seen]
    if missing:
        raise DataError(f"{path}: not a whole ASF file: it has no {', '.join(missing)} section")
    if not root["order"]:
        raise DataError(f"{path}: the :root section has no 'order' line")
    return _assemble(Path(path), units, root, bones, children, length_unit_mm)


def _section(lines: Lines):
    """Takes the lines up to the next section."""
    for words in lines:
        if words[0].startswith(":"):
            lines.push_back(words)
            return
        yield words


def _read_units(lines: Lines, units: dict) -> None:
    for words in _section(lines):
        key = words[0].lower()
        if key == "length":
            units["length"] = float(lines.floats(words[1:], 1, "units: length")[0])
            if units["length"] <= 0:
                raise lines.error(f"units: length must be positive, got {units['length']}")
        elif key == "angle":
            units["angle"] = words[1].lower() if len(words) > 1 else ""
            if units["angle"] not in ("deg", "rad"):
                raise lines.error(f"units: angle must be deg or rad, got {' '.join(words[1:])!r}")


def _read_root(lines: Lines, root: dict) -> None:
    for words in _section(lines):
        key = words[0].lower()
        if key == "order":
            root["order"] = _check_dofs(lines, words[1:])
        elif key == "axis":
            root["axis"] = _check_axes(lines, words[1:])
        elif key in ("position", "orientation"):
            root[key] = lines.floats(words[1:], 3, f"root {key}")


def _read_bones(lines: Lines, bones: dict[str, _Bone]) -> None:
    for words in _section(lines):
        if words[0].lower() != "begin":
            raise lines.error(f"expected 'begin' of a bone, got {words[0]!r}")
        start = lines.number
        fields: dict = {"axis": (np.zeros(3), "XYZ"), "dof": ()}
        for words in lines:
            key = words[0].lower()
            if key == "end" or key == "begin" or key.startswith(":"):
                break
            if key == "name":
                fields["name"] = words[1] if len(words) > 1 else ""
            elif key == "direction":
                fields["direction"] = lines.floats(words[1:], 3, "direction")
            elif key == "length":
                fields["length"] = float(lines.floats(words[1:], 1, "length")[0])
            elif key == "axis":
                fields["axis"] = (lines.floats(words[1:], 3, "axis"), _check_axes(lines, words[4:]))
            elif key == "dof":
                fields["dof"] = _check_dofs(lines, words[1:])
        else:
            words = [""]
        if words[0].lower() != "end":
            raise lines.error(f"the bone that begins on line {start} has no 'end'")
        missing = [key for key in ("name", "direction", "length") if key not in fields]
        if missing or not fields["name"]:
            raise lines.error(
                f"the bone that begins on line {start} has no {', '.join(missing) or 'name'}"
            )
        name = fields["name"]
        if name in bones or name == "root":
            raise lines.error(f"a second bone is named {name!r}")
        norm = np.linalg.norm(fields["direction"])
        if norm == 0 or fields["length"] < 0:
            raise lines.error(f"bone {name!r} needs a direction and a length that is not negative")
        axis, axis_order = fields["axis"]
        bones[name] = _Bone(
            name, fields["direction"] / norm, fields["length"], axis, axis_order, fields["dof"]
        )


def _read_hierarchy(lines: Lines, bones: dict[str, _Bone], children: dict) -> None:
    placed = {"root"}
    for words in _section(lines):
        if words[0].lower() in ("begin", "end") and len(words) == 1:
            continue
        for name in words:
            if name not in bones and name != "root":
                raise lines.error(f"hierarchy: no bone is named {name!r}")
        twice = [name for name in words[1:] if name in placed]
        if twice:
            raise lines.error(f"hierarchy: {twice[0]!r} has more than one parent")
        placed.update(words[1:])
        children.setdefault(words[0], []).extend(words[1:])


def _check_dofs(lines: Lines, words: list[str]) -> tuple[str, ...]:
    dofs = tuple(word.lower() for word in words)
    wrong = [dof for dof in dofs if dof not in _DEGREES_OF_FREEDOM]
    if wrong or len(set(dofs)) != len(dofs):
        raise lines.error(f"degrees of freedom must be of rx ry rz tx ty tz l, got {words}")
    return dofs


def _check_axes(lines: Lines, words: list[str]) -> str:
    order = words[0].upper() if words else ""
    if sorted(order) != ["X", "Y", "Z"]:
        raise lines.error(f"an axis order such as XYZ is needed, got {' '.join(words)!r}")
    return order


def _assemble(path, units, root, bones, children, length_unit_mm) -> AsfSkeleton:
    """Turns bones into joints: a bone's joint sits where the bone begins."""
    mm = length_unit_mm / units["length"]
    degrees = units["angle"] == "deg"
    names, parents, offsets, orders = ["root"], [-1], [np.zeros(3)], [root["axis"]]
    axes = [_axis_matrix(root["orientation"], root["axis"], degrees)]
    queue = [(name, 0, np.zeros(3)) for name in children.get("root", [])]
    while queue:
        name, parent, start = queue.pop(0)
        bone = bones[name]
        joint = len(names)
        names.append(name)
        parents.append(parent)
        offsets.append(start)
        axes.append(_axis_matrix(bone.axis, bone.axis_order, degrees))
        orders.append(bone.axis_order)
        end = mm * bone.length * bone.direction
        below = children.get(name, [])
        if below:
            queue += [(child, joint, end) for child in below]
        else:
            names.append(f"{name} end")
            parents.append(joint)
            offsets.append(end)
            axes.append(np.eye(3))
            orders.append("XYZ")
    lost = set(bones) - set(names)
    if lost:
        raise DataError(f"{path}: the hierarchy does not connect {', '.join(sorted(lost))} to root")
    dofs = {"root": root["order"]} | {
        name: bones[name].dofs for name in names if name in bones and bones[name].dofs
    }
    shifting = [
        name for name in dofs if name != "root" and set(dofs[name]) & {"tx", "ty", "tz", "l"}
    ]
    if shifting:
        raise DataError(
            f"{path}: bone {shifting[0]!r} has a degree of freedom that shifts or stretches it "
            f"({' '.join(dofs[shifting[0]])}); only rotations are supported below the root"
        )
    return AsfSkeleton(
        Hierarchy(tuple(names), tuple(parents), np.array(offsets)),
        np.array(axes),
        tuple(orders),
        dofs,
        mm * root["position"],
        mm,
        degrees,
    )


def _axis_matrix(angles: np.ndarray, order: str, degrees: bool) -> np.ndarray:
    """Makes rotations by angles (x, y, z) about fixed axes in `order`: "XYZ" is Rz Ry Rx."""
    angles = angles[["XYZ".index(axis) for axis in reversed(order)]]
    return rotation_matrices(np.deg2rad(angles) if degrees else angles, order[::-1])
