"""Docstrings have one layout: Google's sections, two spaces, a first line that is a sentence."""

import ast
import re

import pytest
from markdown_pages import ROOT

FOLDERS = ("posemamba_jax", "kernels", "benchmarks", "tests", "scripts")
FILES = [
    path
    for folder in FOLDERS
    for path in sorted((ROOT / folder).rglob("*.py"))
    if not {"build", ".venv"} & set(path.parts)
]
SECTIONS = ("Args", "Attributes", "Returns", "Yields", "Raises")
BANNER = re.compile(r"^\s*#\s*([-=#*~])\1{2,}", re.M)


def faults(source: str) -> list[str]:
    """What is wrong with the docstrings and comments of a file, one line each."""
    found = [f"banner {m[0].strip()}" for m in BANNER.finditer(source)]
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
            continue
        text = ast.get_docstring(node)
        if text is None:
            continue
        name, lines = getattr(node, "name", "the module"), text.splitlines()
        summary = text.split("\n\n")[0]
        if not re.search(r"[.:?!)`]$|[A-Z_]$", summary):
            found.append(f"{name}: the first paragraph ends without a full stop: {summary!r}")
        for number, line in enumerate(lines[:-1]):
            section = line.rstrip(":").strip()
            if section in SECTIONS and line.endswith(":"):
                below = lines[number + 1]
                indent = len(below) - len(below.lstrip())
                if line != f"{section}:" or indent != 2:
                    found.append(f"{name}: {section}: is not indented by two spaces")
                if number and lines[number - 1].strip():
                    found.append(f"{name}: no empty line before {section}:")
        underlined = re.search(r"^-{3,}$", text, re.M)
        if underlined or re.search(r"^\s*:(param|return|raises)", text, re.M):
            found.append(f"{name}: another layout than Google's")
    return found


@pytest.mark.parametrize("folder", FOLDERS)
def test_one_layout(folder):
    found = {
        str(path.relative_to(ROOT)): wrong
        for path in FILES
        if path.relative_to(ROOT).parts[0] == folder
        and (wrong := faults(path.read_text(encoding="utf-8")))
    }
    assert not found, "\n".join(f"{path}: {line}" for path, all in found.items() for line in all)


def test_other_layouts_are_found():
    good = '"""Does it.\n\nArgs:\n  x: a number.\n"""\n'
    assert faults(good) == []
    assert faults(good.replace("  x", "    x")) and faults(good.replace(".\n\n", ".\n"))
    assert faults(good.replace("Does it.", "Does it")) and faults("# ---- part\n")
    assert faults('"""Does it.\n\nParameters\n----------\n"""\n')
