"""Which joints of a motion capture skeleton stand for the 17 of Human3.6M.

A map gives each of the 17 an expression: names joined by "+" mean the middle of those joints, and
of alternatives separated by "|" the first that the skeleton has is taken. Names are compared
without case, spaces, "_", "-" and any prefix such as "mixamorig:"; "<joint> end" is the far end of
a joint without children.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from posemamba_jax.data.clips import DataError
from posemamba_jax.skeleton import H36M17


def _both_sides(limbs: dict[str, str], left: str, right: str) -> dict[str, str]:
    """Fills {} in the joints of one side with what the file calls left and right."""
    return {
        f"{side}_{joint}": name.replace("{}", word)
        for joint, name in limbs.items()
        for side, word in (("l", left), ("r", right))
    }


# The hip joints' middle is the root everywhere: files put theirs up to a hand's breadth higher.
_HUMANOID = {"hip": "{}UpLeg", "knee": "{}Leg", "ankle": "{}Foot", "shoulder": "{}Arm"}

LAYOUTS: dict[str, dict[str, str]] = {
    # A bone's joint is where it begins. "upperback" begins halfway up the trunk, "lowerneck" where
    # the collar bones meet, "head" at the height of the nose. "hand" is the wrist that bends; the
    # bone called wrist is the part of the forearm that turns.
    "ASF of the CMU database": {
        "root": "lfemur+rfemur",
        "belly": "upperback",
        "neck": "lowerneck",
        "nose": "head",
        "head": "head end",
        **_both_sides(
            {
                "hip": "{}femur",
                "knee": "{}tibia",
                "ankle": "{}foot",
                "shoulder": "{}humerus",
                "elbow": "{}radius",
                "wrist": "{}hand",
            },
            "l",
            "r",
        ),
    },
    # The same skeleton as it is called in the database's conversions to BVH.
    "CMU converted to BVH": {
        "root": "LeftUpLeg+RightUpLeg",
        "belly": "Spine",
        "neck": "Neck",
        "nose": "Head",
        "head": "Head end",
        **_both_sides(_HUMANOID | {"elbow": "{}ForeArm", "wrist": "{}FingerBase"}, "Left", "Right"),
    },
    "Mixamo and alike": {
        "root": "LeftUpLeg+RightUpLeg",
        "belly": "Spine1|Spine",
        "neck": "Neck",
        "nose": "Head",
        "head": "HeadTop_End|HeadTop|Head end",
        **_both_sides(_HUMANOID | {"elbow": "{}ForeArm", "wrist": "{}Hand"}, "Left", "Right"),
    },
    "Biovision": {
        "root": "LeftHip+RightHip",
        "belly": "Chest2|Chest|Spine",
        "neck": "Neck",
        "nose": "Head",
        "head": "Head end",
        **_both_sides(
            {
                "hip": "{}Hip",
                "knee": "{}Knee",
                "ankle": "{}Ankle|{}Foot",
                "shoulder": "{}Shoulder",
                "elbow": "{}Elbow",
                "wrist": "{}Wrist|{}Hand",
            },
            "Left",
            "Right",
        ),
    },
}


def parse_overrides(entries: Sequence[str]) -> dict[str, str]:
    """Reads entries such as "belly=Spine2".

    Raises:
      ValueError: an entry has no "=" or names none of the 17 joints.
    """
    overrides = {}
    for entry in entries:
        joint, equals, expression = (part.strip() for part in entry.partition("="))
        if not equals or not expression or joint not in H36M17.joints:
            raise ValueError(
                f"data.mocap.joints: {entry!r} is not JOINT=NAME with JOINT one of "
                f"{', '.join(H36M17.joints)}"
            )
        overrides[joint] = expression
    return overrides


def h36m_weights(names: Sequence[str], overrides: dict[str, str], source: str | Path) -> np.ndarray:
    """Makes the matrix that takes a skeleton's joints to Human3.6M's 17.

    Args:
      names: the skeleton's joints.
      overrides: expressions that replace those of the layout.
      source: the file, for the message.

    Returns:
      (17, joints) weights, each row summing to 1.

    Raises:
      DataError: no layout fits; names the joints that are missing from the one that fits best.
    """
    known = {_simple(name): index for index, name in reversed(list(enumerate(names)))}
    fewest = None
    for layout, table in LAYOUTS.items():
        table = table | overrides
        weights = np.zeros((len(H36M17.joints), len(names)))
        missing = []
        for row, joint in enumerate(H36M17.joints):
            found = _resolve(table[joint], known)
            if found is None:
                missing.append((joint, table[joint]))
            else:
                np.add.at(weights[row], found, 1 / len(found))
        if not missing:
            return weights
        if fewest is None or len(missing) < len(fewest[1]):
            fewest = layout, missing
    layout, missing = fewest
    wanted = ", ".join(f"{joint} ({expression})" for joint, expression in missing)
    raise DataError(
        f"{source}: the skeleton fits no known layout; of the nearest ({layout}) it lacks "
        f"{wanted}. Its joints are {', '.join(names)}. Name the ones to use in data.mocap.joints, "
        f'for example ["{missing[0][0]}=NAME"]'
    )


def _resolve(expression: str, known: dict[str, int]) -> list[int] | None:
    for alternative in expression.split("|"):
        parts = [known.get(_simple(name)) for name in alternative.split("+")]
        if None not in parts:
            return parts
    return None


def _simple(name: str) -> str:
    name = name.rpartition(":")[2].lower()
    for character in " _-":
        name = name.replace(character, "")
    return name.removeprefix("mixamorig")
