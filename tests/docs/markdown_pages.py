"""Runs the code of a documentation page as it is written.

A page is run from top to bottom in a folder of its own:

- ```python blocks share one namespace, like cells of a notebook;
- ```python title="name.py" is not run but written to that file, for a later command to run;
- ```sh blocks are run by bash, with `python` being this interpreter;
- a block after the comment <!-- not run: REASON --> is left out;
- blocks of other languages and indented blocks are not code to run.
"""

import contextlib
import dataclasses
import os
import re
import subprocess
import sys
import types
from pathlib import Path

ROOT = Path(__file__).parents[2]

# A page with this line is run by test_other_pages.py without further ado. Those of
# docs/building_blocks have tests of their own, which also look at what the page computed.
RUN_COMMENT = "<!-- The code of this page is run by the tests. -->"

# What a page written for the root of the repository may name.
_REPOSITORY = ("configs", "tests/data", "train.py", "eval.py", "predict.py")

_FENCE = re.compile(r"^```(?P<language>\w*)(?:[ \t]+title=\"(?P<title>[\w.-]+)\")?[ \t]*$")
_NOT_RUN = re.compile(r"^<!-- not run: (?P<reason>.+) -->$")


@dataclasses.dataclass(frozen=True)
class Block:
    """One fenced block of a page; `line` is that of its first line of code, from 1."""

    language: str
    text: str
    line: int
    title: str | None = None
    not_run: str | None = None

    @property
    def is_code(self) -> bool:
        return self.language in ("python", "sh") and self.not_run is None


def read_blocks(page: Path) -> list[Block]:
    """Reads the fenced blocks of a Markdown file in order.

    Raises:
      ValueError: a fence is not closed or its first line is not understood.
    """
    blocks, lines = [], page.read_text(encoding="utf-8").splitlines()
    not_run, i = None, 0
    while i < len(lines):
        if lines[i].startswith("```"):
            fence = _FENCE.match(lines[i])
            end = next((j for j in range(i + 1, len(lines)) if lines[j].rstrip() == "```"), None)
            if fence is None or end is None:
                raise ValueError(f"{page}:{i + 1}: not a fence that can be read: {lines[i]!r}")
            text = "\n".join(lines[i + 1 : end]) + "\n"
            blocks.append(Block(fence["language"], text, i + 2, fence["title"], not_run))
            not_run, i = None, end
        elif lines[i].strip():
            match = _NOT_RUN.match(lines[i].strip())
            not_run = match["reason"] if match else None
        i += 1
    return blocks


def pages_to_run() -> list[Path]:
    """Lists README.md and the pages under docs/ that hold the line RUN_COMMENT."""
    pages = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
    return [
        page
        for page in pages
        if page.is_file() and RUN_COMMENT in page.read_text(encoding="utf-8").splitlines()
    ]


def run_page(page: Path, folder: Path) -> dict:
    """Runs every code block of a page in order, with `folder` as the current directory.

    The folder gets links to those parts of the repository that pages name.

    Returns:
      The namespace that the Python blocks leave behind.

    Raises:
      AssertionError: a command failed; the message has its line and what it printed.
      Exception: whatever a Python block raises; its traceback names the page's line.
    """
    for name in _REPOSITORY:
        link = folder / name
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(ROOT / name)
    # A module of its own, because classes look up the module that they are defined in.
    module = types.ModuleType(f"page_{page.stem}")
    sys.modules[module.__name__] = module
    try:
        with contextlib.chdir(folder):
            for block in read_blocks(page):
                if block.is_code:
                    _run_block(block, page, folder, module)
    finally:
        del sys.modules[module.__name__]
    return vars(module)


def _run_block(block: Block, page: Path, folder: Path, module: types.ModuleType):
    if block.title:
        (folder / block.title).write_text(block.text, encoding="utf-8")
    elif block.language == "python":
        code = "\n" * (block.line - 1) + block.text
        exec(compile(code, str(page), "exec"), vars(module))
    else:
        result = run_command(block.text, folder)
        assert result.returncode == 0, (
            f"{page}:{block.line}: exit code {result.returncode}\n{result.stdout}{result.stderr}"
        )


def run_command(command: str, folder: Path, *, first_on_path: Path | None = None):
    """Runs a bash script in a folder with this interpreter and this package.

    Args:
      first_on_path: a folder whose Python modules go before all others.
    """
    shims = folder / ".shims"
    shims.mkdir(exist_ok=True)
    python = shims / "python"
    python.write_text(f'#!/bin/sh\nexec "{sys.executable}" "$@"\n')
    python.chmod(0o755)
    python_path = [first_on_path, ROOT, ROOT / "kernels"]
    env = os.environ | {
        "PATH": f"{shims}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": os.pathsep.join(str(p) for p in python_path if p),
    }
    return subprocess.run(
        ["bash", "-euo", "pipefail", "-c", command],
        cwd=folder,
        env=env,
        capture_output=True,
        text=True,
        timeout=300,
    )
