"""Runs one command in a folder of its own and says what it printed and what it did to files."""

import contextlib
import dataclasses
import fnmatch
import hashlib
import importlib.util
import io
import logging
import os
import re
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from unittest import mock

import jax
import numpy as np

import posemamba_jax
from posemamba_jax.config.program import run_main
from posemamba_jax.evaluation import checkpoint
from posemamba_jax.predict import lift
from posemamba_jax.training import loop

ROOT = Path(posemamba_jax.__file__).parents[1]

_DEVICES = jax.devices()

# Exit codes that the documents name: done, refused, diverged, stopped by the system, by Ctrl-C.
DOCUMENTED = (0, 2, 3, 75, 130)


@dataclasses.dataclass(frozen=True)
class Trial:
    """A command, and what may come of it.

    Attributes:
      name: of the trial.
      command: the program and its arguments, split at blanks; `{home}` and the like are filled in
        by `arguments`, which replaces the text after the program where it is given.
      says: words that must appear in what it prints.
      codes: exit codes that are allowed.
      leaves: patterns of the files it may make or change; by default none.
      prepare: called with the trial's folder first.
      arguments: the arguments one by one, for those that hold blanks.
      never: words that must not appear.
      loses: patterns of the files that it may remove, as replacing a folder does.
    """

    name: str
    command: str
    says: tuple[str, ...] = ()
    codes: tuple[int, ...] = (2,)
    leaves: tuple[str, ...] = ()
    prepare: Callable[[Path], None] | None = None
    arguments: tuple[str, ...] | None = None
    never: tuple[str, ...] = ()
    loses: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Outcome:
    """How a command ended: its exit code, and what it wrote to the terminal."""

    code: int
    stdout: str
    stderr: str

    @property
    def text(self) -> str:
        return self.stdout + self.stderr


def programs() -> dict[str, Callable[[Sequence[str]], int]]:
    """Name -> `main` of every program."""
    from posemamba_jax import convert
    from posemamba_jax.pictures import report, ssm_map
    from posemamba_jax.predict.export import stablehlo
    from posemamba_jax.predict.run import main as predict
    from posemamba_jax.training import compare

    def script(name: str) -> Callable[[Sequence[str]], int]:
        spec = importlib.util.spec_from_file_location(f"{name}_program", ROOT / f"{name}.py")
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module.main

    return {
        "train": script("train"),
        "eval": script("eval"),
        "predict": predict,
        "convert": convert.main,
        "export": stablehlo.main,
        "report": report.main,
        "ssm_map": ssm_map.main,
        "compare": compare.main,
    }


def _flat_poses(poses_2d: np.ndarray) -> np.ndarray:
    """Stands for a model: the input with a depth of zero."""
    return np.pad(poses_2d, ((0, 0), (0, 0), (0, 0), (0, 1)))


def _free_step(state, batch):
    """Stands for a training step: nothing changes but the count."""
    return state.replace(step=state.step + 1), {"loss": np.float32(1), "skipped": np.float32(0)}


def run_command(program: str, arguments: Sequence[str], folder: Path) -> Outcome:
    """Runs a program in this process, with `folder` as its working and home folder."""
    main, out, err = programs()[program], io.StringIO(), io.StringIO()
    warnings = logging.StreamHandler(err)  # Under pytest they go elsewhere.
    logging.getLogger("posemamba_jax").addHandler(warnings)
    before, home = Path.cwd(), os.environ.get("HOME")
    os.chdir(folder)
    os.environ["HOME"] = str(folder / "home")
    try:
        with (
            contextlib.redirect_stdout(out),
            contextlib.redirect_stderr(err),
            # Tests have eight virtual devices; one compiles sooner.
            mock.patch.object(jax, "devices", lambda *_: _DEVICES[:1]),
            # What programs do with files does not depend on the model, and compiling takes long.
            mock.patch.object(lift, "make_predict", lambda *_: _flat_poses),
            mock.patch.object(checkpoint, "make_predict", lambda *_, **__: _flat_poses),
            mock.patch.object(loop, "make_forward", lambda *_: lambda _, poses: _flat_poses(poses)),
            mock.patch.object(loop, "compile_train_step", lambda *_, **__: _free_step),
        ):
            try:
                code = run_main(main, list(arguments))
            except SystemExit as stop:  # argparse
                code = stop.code if isinstance(stop.code, int) else 1
    finally:
        logging.getLogger("posemamba_jax").removeHandler(warnings)
        os.chdir(before)
        if home is not None:
            os.environ["HOME"] = home
    return Outcome(code, out.getvalue(), err.getvalue())


def snapshot(folder: Path) -> dict[str, str]:
    """Path of every regular file and link below a folder -> a digest of its content."""
    found = {}
    for parent, folders, names in os.walk(folder):
        for name in [*names, *folders]:
            path = Path(parent, name)
            key = os.fsencode(path.relative_to(folder)).decode("latin-1")
            if path.is_symlink():
                found[key] = f"link {os.readlink(path)!r}"
            elif path.is_file():
                size = path.stat().st_size
                with path.open("rb") as file:  # The start and the length, since some are sparse.
                    found[key] = f"{size} {hashlib.sha256(file.read(1 << 24)).hexdigest()}"
    return found


def copy_template(template: Path, folder: Path, words: Sequence[str]) -> None:
    """Copies what a command names of the template, and what is small."""
    folder.mkdir()
    for part in template.iterdir():
        if part.is_file():
            shutil.copy2(part, folder)
        elif part.name not in ("run", "model") or part.name in words:
            shutil.copytree(part, folder / part.name)


def check(trial: Trial, template: Path, folder: Path) -> Outcome:
    """Runs a trial on a copy of `template` and asserts everything that it says.

    Raises:
      AssertionError: another exit code, a missing or forbidden word, a traceback, more than one
        line of message, or a file that was lost, changed or made and may not be.
    """
    copy_template(template, folder, [*trial.command.split(), *(trial.arguments or ())])
    if trial.prepare is not None:
        trial.prepare(folder)
    program, *arguments = trial.command.split()
    if trial.arguments is not None:
        arguments = list(trial.arguments)
    before = snapshot(folder)
    outcome = run_command(program, arguments, folder)
    after = snapshot(folder)
    shown = f"{trial.name}: {outcome}"
    assert outcome.code in trial.codes, shown
    for word in trial.says:
        assert word in " ".join(outcome.text.split()), f"{word!r} is missing in {shown}"
    for word in (*trial.never, "Traceback", "Errno"):
        assert word not in outcome.text, f"{word!r} appears in {shown}"
    check_message(outcome)
    kept = {key: digest for key, digest in before.items() if not matches(key, trial.loses)}
    check_files(kept, after, trial.leaves, shown)
    return outcome


def check_message(outcome: Outcome) -> None:
    """Asserts that a refusal is one line, but for a table or a list that it announces."""
    if outcome.code != 2:
        return
    lines = [line for line in outcome.stderr.splitlines() if "error: " in line]
    assert len(lines) == 1, outcome
    after = outcome.stderr.partition(lines[0])[2].splitlines()
    assert all(line.startswith("  ") for line in after if line.strip()), outcome
    assert len(re.sub(r"^.*?error: ", "", lines[0])) > 10, outcome


def matches(key: str, patterns: Sequence[str]) -> bool:
    """Whether a path is one of those that patterns allow; `*` goes through folders too."""
    return any(fnmatch.fnmatchcase(key, pattern) for pattern in patterns)


def check_files(
    before: dict[str, str], after: dict[str, str], may_change: Sequence[str], shown: str
) -> None:
    """Asserts that nothing was lost, and that only files which may were made or changed."""
    lost = sorted(before.keys() - after.keys())
    other = sorted(key for key in after if after[key] != before.get(key))
    wrong = [key for key in other if not matches(key, may_change)]
    assert not lost, f"{lost} lost by {shown}"
    assert not wrong, f"{wrong} made or changed by {shown}"
