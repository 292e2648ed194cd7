"""Skeletons as YAML files, and as the plain values that configurations and checkpoints keep.

    name: two-fingers
    joints: [wrist, index, thumb]
    parents: [null, wrist, wrist]
    left: []             # left[i] and right[i] trade places in a mirror; empty if not given
    right: []
    root: wrist          # the joint without a parent if not given
    limb_walk: [wrist, wrist, wrist]   # each joint's parent (the root's: itself) if not given

Joints are named, or numbered from 0.
"""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from posemamba_jax.errors import DataError, shorten
from posemamba_jax.files import writing
from posemamba_jax.files.reading import user_path
from posemamba_jax.files.yaml_file import read_yaml
from posemamba_jax.skeleton import H36M17, Skeleton

SKELETONS = {"h36m17": H36M17}
_KEYS = ("name", "joints", "parents", "left", "right", "root", "limb_walk")


def load_skeleton(name: str) -> Skeleton:
    """Finds a skeleton by its name, or reads it from a YAML file.

    Args:
      name: one of `SKELETONS`, or a path.

    Raises:
      DataError: there is none, or the file does not describe one; the message says what is wrong.
    """
    if name in SKELETONS:
        return SKELETONS[name]
    path = user_path(name)
    if not os.path.exists(path):
        raise DataError(
            f"{name}: no such skeleton; give {', '.join(SKELETONS)} or a YAML file of joints and "
            "parents (docs/building_blocks/other_skeletons.md shows one)"
        )
    return skeleton_from_dict(read_yaml(path), name)


def save_skeleton(path: str | Path, skeleton: Skeleton) -> None:
    """Writes a skeleton as a YAML file that `load_skeleton` reads back.

    Raises:
      OSError: it cannot be written.
    """
    text = yaml.safe_dump(skeleton_to_dict(skeleton), sort_keys=False, width=100)
    writing.write_text(path, text)


def skeleton_to_dict(skeleton: Skeleton) -> dict[str, Any]:
    """Turns a skeleton into plain values, joints by name."""
    names = skeleton.joints
    return {
        "name": skeleton.name,
        "joints": list(names),
        "parents": [None if parent is None else names[parent] for parent in skeleton.parents],
        "left": [names[joint] for joint in skeleton.left],
        "right": [names[joint] for joint in skeleton.right],
        "root": names[skeleton.root],
        "limb_walk": [names[joint] for joint in skeleton.limb_walk],
    }


def skeleton_from_dict(tree: Any, where: str) -> Skeleton:
    """Makes a skeleton of plain values, as `skeleton_to_dict` gives them or a YAML file has them.

    Args:
      tree: the values; `left`, `right`, `root` and `limb_walk` may be absent.
      where: what errors call the origin.

    Raises:
      DataError: the values do not describe a skeleton.
    """
    if not isinstance(tree, Mapping) or not {"joints", "parents"} <= set(tree):
        raise DataError(f"{where}: expected a skeleton with the keys {', '.join(_KEYS)}")
    unknown = sorted(map(str, set(tree) - set(_KEYS)))
    if unknown:
        raise DataError(f"{where}: unknown key {unknown[0]!r}; known are {', '.join(_KEYS)}")
    names = _names(tree["joints"], where)
    parents = _joints(tree, "parents", names, where, length=len(names), or_none=True)
    roots = [joint for joint, parent in enumerate(parents) if parent is None]
    root = tree.get("root")
    if root is None and len(roots) != 1:
        raise DataError(f"{where}: {len(roots)} joints have no parent, so root must be given")
    walk = tuple(joint if parent is None else parent for joint, parent in enumerate(parents))
    if tree.get("limb_walk") is not None:
        walk = _joints(tree, "limb_walk", names, where, length=len(names))
    try:
        return Skeleton(
            name=str(tree.get("name") or Path(where).stem),
            joints=names,
            bones=tuple((parent, j) for j, parent in enumerate(parents) if parent is not None),
            left=_joints(tree, "left", names, where),
            right=_joints(tree, "right", names, where),
            limb_walk=walk,
            root=roots[0] if root is None else _joint(root, "root", names, where),
        )
    except ValueError as error:
        raise error if isinstance(error, DataError) else DataError(f"{where}: {error}") from None


def _names(values: Any, where: str) -> tuple[str, ...]:
    if not isinstance(values, list) or not values:
        raise DataError(f"{where}: joints must be a list of names, found {shorten(values)}")
    wrong = [value for value in values if not isinstance(value, str)]
    if wrong:
        found = shorten(wrong[0])
        raise DataError(f"{where}: joints has {found}, expected a name (write it in quotes)")
    return tuple(values)


def _joints(
    tree: Mapping, key: str, names: tuple[str, ...], where: str, *, length=None, or_none=False
) -> tuple:
    values = tree.get(key) or []
    if not isinstance(values, list) or (length is not None and len(values) != length):
        expected = "joints" if length is None else f"{length} joints, one for each"
        raise DataError(f"{where}: {key} must be a list of {expected}, found {shorten(values)}")
    return tuple(
        None if or_none and value is None else _joint(value, key, names, where) for value in values
    )


def _joint(value: Any, key: str, names: tuple[str, ...], where: str) -> int:
    """Finds the index of a joint that is given by name or number."""
    if isinstance(value, str) and value in names:
        return names.index(value)
    if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < len(names):
        return value
    raise DataError(f"{where}: {key} has {shorten(value)}, expected one of the joints")
