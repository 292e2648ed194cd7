"""How the code hangs together: imports run down the floors, and importing changes nothing."""

import ast
import logging
import subprocess
import sys
from pathlib import Path

import pytest

from posemamba_jax.config import run_program

ROOT = Path(__file__).parents[1]

# From the top; a module belongs to the longest name that it begins with. Modules of one room may
# import each other, and those of one floor as listed in ALONG.
FLOORS = [
    ["train", "eval", "predict", "posemamba_jax.baselines", "posemamba_jax.export_model",
     "posemamba_jax.report", "posemamba_jax.ssm_map", "posemamba_jax.motion_cache"],
    ["posemamba_jax.predict", "posemamba_jax.training", "posemamba_jax.scaling",
     "posemamba_jax.pictures", "posemamba_jax.convert", "posemamba_jax.pretrained"],
    ["posemamba_jax.evaluation"],
    ["posemamba_jax.config"],
    ["posemamba_jax.data", "posemamba_jax.model", "posemamba_jax.losses"],
    ["posemamba_jax.skeleton", "posemamba_jax.metrics", "posemamba_jax.files",
     "posemamba_jax.pretrained.index"],
    ["posemamba_jax.limits", "posemamba_jax.errors"],
    ["selective_scan_jax"],
]  # fmt: skip
ALONG = {
    ("posemamba_jax.training", "posemamba_jax.pictures"),
    ("posemamba_jax.predict", "posemamba_jax.pictures"),
    ("posemamba_jax.scaling", "posemamba_jax.training"),
    ("posemamba_jax.files", "posemamba_jax.skeleton"),
    ("posemamba_jax.pretrained.index", "posemamba_jax.files"),
    ("posemamba_jax.limits", "posemamba_jax.errors"),
}


def modules() -> dict[str, Path]:
    """Returns every module of the package and the programs, by name."""
    found = {name: ROOT / f"{name}.py" for name in ("train", "eval", "predict")}
    for file in (ROOT / "posemamba_jax").rglob("*.py"):
        parts = file.relative_to(ROOT).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = file
    return found


def imports_of(name: str, file: Path, known) -> set[str]:
    """Lists the project's modules that one imports anywhere, also inside functions.

    What stands under `if __name__ == "__main__"` is a program's and does not count.
    """
    found, tree = set(), ast.parse(file.read_text(encoding="utf-8"))
    tree.body = [
        node
        for node in tree.body
        if not (isinstance(node, ast.If) and "__main__" in ast.unparse(node.test))
    ]
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{name}: a relative import"
            inside = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= inside & known or {node.module}
    return {m for m in found if m.split(".")[0] in ("posemamba_jax", "selective_scan_jax")}


def room_of(module: str) -> tuple[int, str]:
    """Returns the floor, from the top, and the room of a module."""
    rooms = [
        (i, room)
        for i, floor in enumerate(FLOORS)
        for room in floor
        if f"{module}.".startswith(f"{room}.")
    ]
    assert rooms, f"{module} belongs to no floor"
    return max(rooms, key=lambda found: len(found[1]))


def test_imports_run_down_the_floors_only():
    known, upward = modules(), []
    for name, file in known.items():
        if name == "posemamba_jax":
            continue
        floor, room = room_of(name)
        for imported in imports_of(name, file, known.keys()):
            other, their_room = room_of(imported)
            down = other > floor or their_room == room or (room, their_room) in ALONG
            if not down:
                upward.append(f"{name} imports {imported}")
    assert not upward, "\n".join(upward)


def test_rooms_of_one_floor_import_each_other_one_way_only():
    assert not {(b, a) for a, b in ALONG} & ALONG


def test_only_data_of_humans_and_defaults_name_the_skeleton_of_human36m():
    """Elsewhere the skeleton is that of the clips, the model or the caller."""
    allowed = {
        "skeleton", "files.skeleton_file", "losses", "model.config", "model.checkpoint",
        "data", "data.joint_sets", "training.step", "evaluation.mpi_inf_3dhp",
    }  # fmt: skip
    rooms = ("data.sources.", "data.motion.", "data.formats.", "predict.", "pictures.render")
    for name, file in modules().items():
        short = name.removeprefix("posemamba_jax.")
        if short not in allowed and not short.startswith(rooms):
            assert "H36M17" not in file.read_text(encoding="utf-8"), name


STATE = """
import importlib, logging, os, pkgutil, sys
import jax, orbax.checkpoint, matplotlib, grain, flax, tensorboard

def state():
    loggers = {n: (l.level, l.disabled, l.propagate, list(map(str, l.handlers)), list(l.filters))
               for n, l in logging.root.manager.loggerDict.items()
               if isinstance(l, logging.Logger) and not n.startswith("posemamba_jax")}
    return {
        "loggers": {n: loggers.get(n) for n in ("absl", "asyncio", "jax", "orbax", "")},
        "root": (logging.root.level, list(map(str, logging.root.handlers))),
        "hooks": (sys.excepthook, sys.unraisablehook),
        "environment": dict(os.environ),
        "jax": {n: getattr(jax.config, n) for n in
                ("jax_compilation_cache_dir", "jax_enable_x64", "jax_default_matmul_precision",
                 "jax_enable_preemption_service")},
    }

before = state()
import posemamba_jax
for module in pkgutil.walk_packages(posemamba_jax.__path__, "posemamba_jax."):
    if not module.name.endswith("__main__"):
        importlib.import_module(module.name)
after = state()
assert "torch" not in sys.modules, "PyTorch was imported: seconds of every start"
print({key: (before[key], after[key]) for key in before if before[key] != after[key]} or "same")
"""


def test_importing_everything_sets_no_global_state():
    done = subprocess.run(
        [sys.executable, "-c", STATE], cwd=ROOT, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "same"


def test_a_program_quiets_the_libraries_when_it_starts(monkeypatch):
    loggers = [logging.getLogger(name) for name in ("absl", "asyncio")]
    levels = [logger.level for logger in loggers]
    monkeypatch.setattr(sys, "unraisablehook", sys.unraisablehook)
    try:
        with pytest.raises(SystemExit):
            run_program(lambda argv: min(logger.level for logger in loggers))
        assert [logger.level for logger in loggers] == [logging.CRITICAL] * 2
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
