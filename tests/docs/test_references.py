"""What the documents name exists: files, modules, commands, their options, and links."""

import dataclasses
import importlib
import importlib.util
import re
import shlex
from pathlib import Path

import pytest
import yaml
from markdown_pages import ROOT

from posemamba_jax.config import Config

# The changelog also names what is gone.
DOCUMENTS = [
    *(path for path in sorted(ROOT.glob("*.md")) if path.name != "CHANGELOG.md"),
    *sorted((ROOT / "docs").rglob("*.md")),
    ROOT / "kernels" / "README.md",
    ROOT / "tests" / "data" / "README.md",
]
FOLDERS = ("benchmarks", "configs", "docs", "kernels", "posemamba_jax", "scripts", "tests")
SOURCES = [
    path
    for folder in FOLDERS
    for path in (ROOT / folder).rglob("*")
    if path.suffix in (".py", ".sh", ".h", ".cc", ".js", ".css")
] + sorted(ROOT.glob("*.py"))

every_document = pytest.mark.parametrize(
    "document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT))
)


def code_spans(text):
    """Finds what stands in backticks, outside of fenced blocks."""
    return re.findall(r"`([^`\n]+)`", re.sub(r"^```.*?^```", "", text, flags=re.S | re.M))


def expand(path):
    """Expands `a_{s,b}.yaml` to two paths."""
    braces = re.search(r"\{([^{}]*)\}", path)
    if braces is None:
        return [path]
    head, tail = path[: braces.start()], path[braces.end() :]
    return [p for part in braces[1].split(",") for p in expand(head + part + tail)]


def commands(text):
    """Finds the commands of a document as lists of words, in spans, indented and fenced blocks."""
    text = text.replace("\\\n", " ")
    blocks = re.findall(r"^(?:    |\t)+(\S.*)$", text, flags=re.M)
    fenced = "\n".join(re.findall(r"^```sh.*?\n(.*?)^```", text, flags=re.S | re.M))
    for line in [*code_spans(text), *blocks, *fenced.splitlines()]:
        for part in re.split(r"&&|\|\||;|\|(?!\|)", line):
            match = re.match(r"\s*(?:\$ )?(?:[A-Z_]+=\S+ )*((?:python|bash)\s.*)", part)
            if match:
                try:
                    yield shlex.split(match[1], comments=True)
                except ValueError:  # prose with an apostrophe
                    continue


@every_document
def test_files_exist(document):
    missing = []
    for span in code_spans(document.read_text(encoding="utf-8")):
        for word in span.split():
            word = re.sub(r"(::|:\d).*$", "", word.rstrip(".,;:"))
            if "NAME" in word:  # the reader's to fill in
                continue
            if word.split("/")[0] in FOLDERS and "/" in word:
                missing += [p for p in expand(word) if not any(ROOT.glob(p.rstrip("/")))]
            elif re.fullmatch(r"[\w/]+\.(py|sh|h|cc|js|css)", word):
                known = any(str(path).endswith("/" + word) for path in SOURCES)
                missing += [] if known else [word]
    # What a page has its reader write is no file of ours.
    text = document.read_text(encoding="utf-8")
    missing = [name for name in missing if f'title="{name}"' not in text]
    assert not missing, f"{document}: no such files: {missing}"


@every_document
def test_dotted_names_exist(document):
    pattern = r"\b(?:posemamba_jax|selective_scan_jax)(?:\.[A-Za-z_]\w*)+"
    for name in sorted(set(re.findall(pattern, document.read_text(encoding="utf-8")))):
        assert resolves(name), f"{document} names {name}"


def resolves(name):
    parts = name.split(".")
    for count in range(len(parts), 0, -1):
        try:
            found = importlib.import_module(".".join(parts[:count]))
        except ModuleNotFoundError:
            continue
        for part in parts[count:]:
            if not hasattr(found, part):
                return False
            found = getattr(found, part)
        return True
    return False


def config_keys(section=Config, prefix=""):
    for field in dataclasses.fields(section):
        value = field.default_factory() if callable(field.default_factory) else field.default
        if dataclasses.is_dataclass(value):
            yield from config_keys(type(value), f"{prefix}{field.name}.")
        yield prefix + field.name


KEYS = set(config_keys())


@every_document
def test_commands_and_their_options_exist(document):
    for command in commands(document.read_text(encoding="utf-8")):
        program, *words = command[1:] or [""]
        if program == "-m":
            module, words = words[0], words[1:]
            if module.split(".")[0] not in ("posemamba_jax", "selective_scan_jax"):
                continue
            spec = importlib.util.find_spec(module)
            assert spec, f"{document}: {command}"
            source = Path(spec.origin)
        elif program.endswith((".py", ".sh")):
            nested = [p for p in SOURCES if str(p).endswith("/" + program)]
            source = ROOT / program if (ROOT / program).exists() else next(iter(nested), None)
            if source is None and f'title="{program}"' in document.read_text(encoding="utf-8"):
                continue
            assert source, f"{document}: {command}"
        else:
            continue
        for word in words:
            if word.startswith("--") and len(word) > 2:
                name = word[2:].split("=")[0]
                assert has_option(source, name), f"{document}: {' '.join(command)}: --{name}"


def has_option(source, name):
    """Tells whether a program takes an option, as a key of the configuration or by its source's
    text.
    """
    if name in KEYS or name in ("help", "config", "print_config"):
        return True
    rooms = {"predict.py": "predict", "train.py": "config", "eval.py": "evaluation"}
    folder = ROOT / "posemamba_jax" / rooms[source.name] if source.parent == ROOT else source.parent
    near = [source, *folder.rglob("*.py"), *relayed(source)]
    pattern = rf'"--{re.escape(name)}"|\b{re.escape(name.replace("-", "_"))}\s*:\s'
    return any(re.search(pattern, p.read_text(encoding="utf-8")) for p in near)


def relayed(source):
    """Finds the module that a command's short name stands for."""
    match = re.search(r"^from (posemamba_jax\.\S+) import .*main", source.read_text(), re.M)
    return [Path(importlib.util.find_spec(match[1]).origin)] if match else []


@every_document
def test_links_lead_somewhere(document):
    text = document.read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if re.match(r"https?:|mailto:", target):
            continue
        path, _, anchor = target.partition("#")
        found = (document.parent / path).resolve() if path else document
        assert found.exists(), f"{document}: {target}"
        if anchor:
            titles = re.findall(r"^#+ (.*)$", found.read_text(encoding="utf-8"), re.M)
            slugs = {re.sub(r"[^\w\- ]", "", t.lower()).replace(" ", "-") for t in titles}
            assert anchor in slugs, f"{document}: {target}"


def test_the_table_of_configurations_lists_all_of_them():
    text = (ROOT / "docs" / "training.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `(configs/\S+)` \|", text, flags=re.M)
    listed = sorted(path for row in rows for path in expand(row))
    assert listed == sorted(p.relative_to(ROOT).as_posix() for p in ROOT.glob("configs/**/*.yaml"))


def test_citation_is_valid_and_of_this_version():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    required = {"cff-version", "message", "title", "authors", "version", "license", "references"}
    assert required <= set(citation)
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    assert f'version = "{citation["version"]}"' in project
    paper = citation["references"][0]
    assert (paper["year"], paper["doi"]) == (2025, "10.1609/aaai.v39i4.32401")
    assert [a["family-names"] for a in paper["authors"]] == ["Huang", "Liu", "Xian", "Qiu"]


def test_what_is_not_there_is_found(tmp_path):
    assert not resolves("posemamba_jax.prediction")
    assert resolves("posemamba_jax.skeleton.H36M17.limb_walk")
    text = "Run `python train.py --data.sorce x`:\n\n    python -m nothing.here --x\n"
    assert [c[1:3] for c in commands(text)] == [
        ["train.py", "--data.sorce"],
        ["-m", "nothing.here"],
    ]
    assert not has_option(ROOT / "train.py", "data.sorce")
    assert has_option(ROOT / "train.py", "data.source")


def test_the_readme_opens_with_a_small_moving_picture_and_its_command():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    picture = re.search(
        r"!\[[^]]+\]\((docs/images/\w+\.(?:webp|gif))\)\n\n {4}python predict\.py ", text
    )
    assert picture and text.index("\n## ") > picture.start()
    assert (ROOT / picture[1]).stat().st_size < 2_000_000
