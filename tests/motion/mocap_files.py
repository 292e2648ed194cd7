"""Writes motion capture files of made-up people, for tests of what reads them."""

from dataclasses import dataclass

import numpy as np
from scipy.spatial.transform import Rotation

MM = 25.4 / 0.45  # millimetres in a unit of length of the ASF files

# name: (parent, direction, length in the file's units, axis, degrees of freedom). The names are
# those of the CMU database, the numbers a made-up person's, arms held to the sides.
BONES = {
    "lhipjoint": ("root", (0.6, -0.7, 0.3), 2.4, (0, 0, 0), ""),
    "lfemur": ("lhipjoint", (0.3, -0.95, 0.0), 7.2, (0, 0, 18), "rx ry rz"),
    "ltibia": ("lfemur", (0.3, -0.95, 0.0), 7.4, (0, 0, 18), "rx"),
    "lfoot": ("ltibia", (0.05, -0.2, 0.97), 2.3, (-90, 5, 18), "rx rz"),
    "rhipjoint": ("root", (-0.6, -0.7, 0.3), 2.4, (0, 0, 0), ""),
    "rfemur": ("rhipjoint", (-0.3, -0.95, 0.0), 7.3, (0, 0, -18), "rx ry rz"),
    "rtibia": ("rfemur", (-0.3, -0.95, 0.0), 7.4, (0, 0, -18), "rx"),
    "rfoot": ("rtibia", (-0.05, -0.2, 0.97), 2.3, (-90, -5, -18), "rx rz"),
    "lowerback": ("root", (0.0, 1.0, -0.05), 2.0, (0, 0, 0), "rx ry rz"),
    "upperback": ("lowerback", (0.0, 1.0, 0.0), 2.1, (0, 0, 0), "rx ry rz"),
    "thorax": ("upperback", (0.0, 1.0, 0.02), 2.1, (0, 0, 0), "rx ry rz"),
    "lowerneck": ("thorax", (0.0, 1.0, 0.1), 1.7, (0, 0, 0), "rx ry rz"),
    "upperneck": ("lowerneck", (0.0, 1.0, -0.1), 1.7, (0, 0, 0), "rx ry rz"),
    "head": ("upperneck", (0.0, 1.0, 0.0), 1.8, (0, 0, 0), "rx ry rz"),
    "lclavicle": ("thorax", (0.93, 0.33, -0.1), 3.5, (0, 0, 0), "ry rz"),
    "lhumerus": ("lclavicle", (1.0, 0.0, 0.0), 5.0, (180, 25, -90), "rx ry rz"),
    "lradius": ("lhumerus", (1.0, 0.0, 0.0), 3.4, (90, 35, -90), "rx"),
    "lwrist": ("lradius", (1.0, 0.0, 0.0), 1.7, (0, -90, -90), "ry"),
    "lhand": ("lwrist", (1.0, 0.0, 0.0), 0.7, (0, -90, -90), "rx rz"),
    "rclavicle": ("thorax", (-0.93, 0.33, -0.1), 3.5, (0, 0, 0), "ry rz"),
    "rhumerus": ("rclavicle", (-1.0, 0.0, 0.0), 5.1, (180, -25, 90), "rx ry rz"),
    "rradius": ("rhumerus", (-1.0, 0.0, 0.0), 3.4, (90, -35, 90), "rx"),
    "rwrist": ("rradius", (-1.0, 0.0, 0.0), 1.7, (0, 90, 90), "ry"),
    "rhand": ("rwrist", (-1.0, 0.0, 0.0), 0.7, (0, 90, 90), "rx rz"),
}
# What the database's conversions to BVH call the same joints.
BVH_NAMES = {
    "root": "Hips",
    "lowerback": "LowerBack",
    "upperback": "Spine",
    "thorax": "Spine1",
    "lowerneck": "Neck",
    "upperneck": "Neck1",
    "head": "Head",
}
for _letter, _word in (("l", "Left"), ("r", "Right")):
    BVH_NAMES |= {
        f"{_letter}{asf}": name.format(_word, _letter.upper())
        for asf, name in {
            "hipjoint": "{1}HipJoint",
            "femur": "{0}UpLeg",
            "tibia": "{0}Leg",
            "foot": "{0}Foot",
            "clavicle": "{0}Shoulder",
            "humerus": "{0}Arm",
            "radius": "{0}ForeArm",
            "wrist": "{0}Hand",
            "hand": "{0}FingerBase",
        }.items()
    }


@dataclass
class Motion:
    """Made-up angles in degrees for each bone, (frames, dofs), and the root's position in units."""

    angles: dict[str, np.ndarray]
    root: np.ndarray


def draw_motion(seed: int, frames: int) -> Motion:
    rng = np.random.default_rng(seed)
    smooth = np.sin(
        np.linspace(0, 3, frames)[:, None] * rng.uniform(0.5, 2, 3) + rng.uniform(0, 6, 3)
    )
    angles = {"root": 25 * smooth}
    for name, (_, _, _, _, dofs) in BONES.items():
        if dofs:
            count = len(dofs.split())
            phase = rng.uniform(0, 6, count)
            angles[name] = 20 * np.sin(np.linspace(0, 4, frames)[:, None] + phase)
    root = np.array([1.0, 17.0, -2.0]) + np.linspace(0, 5, frames)[:, None] * [0.3, 0.0, 1.0]
    return Motion(angles, root)


def write_asf(path, *, drop: str | None = None) -> None:
    lines = [":version 1.10", ":name made_up", ":units", "  mass 1.0", "  length 0.45"]
    lines += ["  angle deg", ":documentation", "  free text: begin end 1 2 3", ":root"]
    lines += ["  order TX TY TZ RX RY RZ", "  axis XYZ", "  position 0 0 0", "  orientation 0 0 0"]
    lines += [":bonedata"]
    for number, (name, (_, direction, length, axis, dofs)) in enumerate(BONES.items(), start=1):
        if name == drop:
            continue
        lines += ["  begin", f"    id {number}", f"    name {name}"]
        lines += [f"    direction {' '.join(map(str, direction))}", f"    length {length}"]
        lines += [f"    axis {' '.join(map(str, axis))} XYZ"]
        if dofs:
            lines += [f"    dof {dofs}", "    limits (-20.0 45.0)"]
            lines += ["           (-30.0 30.0)"] * (len(dofs.split()) - 1)
        lines += ["  end"]
    lines += [":hierarchy", "  begin"]
    for parent in ["root", *BONES]:
        children = [name for name, bone in BONES.items() if bone[0] == parent and name != drop]
        if children and parent != drop:
            lines += [f"    {parent} {' '.join(children)}"]
    path.write_bytes("\r\n".join([*lines, "  end", ""]).encode())


def write_amc(path, motion: Motion) -> None:
    lines = ["#!OML:ASF made up", ":FULLY-SPECIFIED", ":DEGREES"]
    for frame in range(len(motion.root)):
        lines.append(str(frame + 1))
        for name, angles in motion.angles.items():
            values = [*motion.root[frame], *angles[frame]] if name == "root" else angles[frame]
            lines.append(f"{name} {' '.join(f'{value:.9g}' for value in values)}")
    path.write_text("\n".join(lines) + "\n")


def local_rotations(motion: Motion) -> dict[str, Rotation]:
    """Computes what the ASF format means by the angles: axis * turn * inverse axis, x first."""
    turns = {"root": Rotation.from_euler("xyz", motion.angles["root"], degrees=True)}
    frames = len(motion.root)
    for name, (_, _, _, axis, dofs) in BONES.items():
        angles = np.zeros((frames, 3))
        for k, dof in enumerate(dofs.split()):
            angles[:, "xyz".index(dof[1])] = motion.angles[name][:, k]
        axis = Rotation.from_euler("xyz", axis, degrees=True)
        turns[name] = axis * Rotation.from_euler("xyz", angles, degrees=True) * axis.inv()
    return turns


def evaluate(motion: Motion) -> dict[str, np.ndarray]:
    """Computes where each bone begins and, as "<bone> end", ends, in millimetres, bone by bone."""
    turns = local_rotations(motion)
    frame_of, ends, result = {"root": turns["root"]}, {"root": MM * motion.root}, {}
    result["root"] = ends["root"]
    for name, (parent, direction, length, _, _) in BONES.items():
        direction = np.array(direction) / np.linalg.norm(direction)
        frame_of[name] = frame_of[parent] * turns[name]
        result[name] = ends[parent]
        ends[name] = ends[parent] + frame_of[name].apply(MM * length * direction)
        result[f"{name} end"] = ends[name]
    return result


def write_bvh(
    path, motion: Motion, *, names=BVH_NAMES, order="ZXY", frame_time=1 / 120, mm_per_unit=10.0
) -> None:
    """Writes the same skeleton and motion as BVH, angles taken apart by scipy."""
    turns = local_rotations(motion)
    lines, columns = ["HIERARCHY"], []

    def offset_of(name):
        _, direction, length, _, _ = BONES[name]
        return MM / mm_per_unit * length * np.array(direction) / np.linalg.norm(direction)

    def add(name, offset, depth):
        pad = "\t" * depth
        kind = "ROOT" if depth == 0 else "JOINT"
        channels = [f"{axis}rotation" for axis in order]
        columns.append(turns[name].as_euler(order, degrees=True))
        if depth == 0:
            channels = ["Xposition", "Yposition", "Zposition", *channels]
            columns.insert(0, MM / mm_per_unit * motion.root)
        lines.extend([f"{pad}{kind} {names[name]}", pad + "{"])
        lines.append(f"{pad}\tOFFSET {' '.join(f'{v:.9f}' for v in offset)}")
        lines.append(f"{pad}\tCHANNELS {len(channels)} {' '.join(channels)}")
        end = np.zeros(3) if name == "root" else offset_of(name)
        children = [child for child, bone in BONES.items() if bone[0] == name]
        for child in children:
            add(child, end, depth + 1)
        if not children:
            lines.extend([f"{pad}\tEnd Site", pad + "\t{"])
            lines.append(f"{pad}\t\tOFFSET {' '.join(f'{v:.9f}' for v in end)}")
            lines.append(pad + "\t}")
        lines.append(pad + "}")

    add("root", np.zeros(3), 0)
    values = np.concatenate(columns, axis=1)
    lines += ["MOTION", f"Frames: {len(values)}", f"Frame Time: {frame_time:.9f}"]
    lines += [" ".join(f"{value:.9f}" for value in row) for row in values]
    path.write_text("\n".join(lines) + "\n")
