"""Whatever is in a configuration file or on the command line: a configuration or a ConfigError."""

import contextlib
import io
import os
import string

import pytest
import yaml
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from posemamba_jax.config import Config, ConfigError, from_dict, load_config, to_dict, to_yaml

FUZZ = settings(
    max_examples=int(os.environ.get("POSEMAMBA_FUZZ", "30")),
    deadline=None,
    derandomize=True,
    phases=[Phase.explicit, Phase.generate],
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


def keys_of(tree, prefix=""):
    for key, value in tree.items():
        yield prefix + key
        if isinstance(value, dict):
            yield from keys_of(value, f"{prefix}{key}.")


KEYS = [*keys_of(to_dict(Config())), "model.preset"]
SCALARS = (
    st.none()
    | st.booleans()
    | st.integers(-(10**25), 10**25)
    | st.floats()
    | st.text(max_size=8)
    | st.sampled_from(["B", "cosine", "~", "1e3", "0x10", "1_000", "nan", "{}", "[1", "!!x", "--"])
    | st.dates()
    | st.binary(max_size=4)
)
JUNK = st.recursive(
    SCALARS,
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(
            st.sampled_from([k.split(".")[-1] for k in KEYS]) | SCALARS, inner, max_size=4
        )
    ),
    max_leaves=8,
)


def read_or_refuse(call):
    """Reads the configuration, or returns None; what a refusal says can be printed in one line."""
    try:
        config = call()
    except ConfigError as error:
        text = str(error)
        text.encode()
        assert text and "\n" not in text
        return None
    assert isinstance(config, Config)
    return config


@pytest.fixture
def file(tmp_path):
    return tmp_path / "run.yaml"


@FUZZ
@given(changes=st.dictionaries(st.sampled_from(KEYS), JUNK, max_size=3))
def test_any_value_of_a_known_key(changes, file):
    tree = {}
    for key, value in changes.items():
        *sections, name = key.split(".")
        inner = tree
        for section in sections:
            inner = inner.setdefault(section, {})
            if not isinstance(inner, dict):
                break
        else:
            inner[name] = value
    file.write_text(yaml.safe_dump(tree), encoding="utf-8")
    config = read_or_refuse(lambda: load_config(["--config", str(file)]))
    if config is not None:
        # What was read can be kept and read again.
        file.write_text(to_yaml(config), encoding="utf-8")
        assert repr(load_config(["--config", str(file)])) == repr(config)
    read_or_refuse(lambda: from_dict(tree))


@FUZZ
@given(tree=JUNK)
def test_any_tree(tree, file):
    file.write_text(yaml.safe_dump(tree), encoding="utf-8")
    read_or_refuse(lambda: load_config(["--config", str(file)]))


PIECES = st.sampled_from(
    ["optim:", "learning_rate", "seed", " ", "\n", "  ", ":", "- ", "{", "}", "[", "]", ",", "&a ",
     "*a", "<<: ", "!!python/object/apply:os.mkdir [ran]", "!!python/name:os.system", "!!binary x",
     "!!int a", "? ", "| ", "> ", "'", '"', "#", "%YAML 9", "---", "...", "\t", "\x00",
     "2001-99-99", "1e999", "\ud800", "=", "@", "`"]
)  # fmt: skip


@FUZZ
@given(text=st.lists(PIECES | st.text(string.printable, max_size=5), max_size=25).map("".join))
def test_any_text(text, file, monkeypatch):
    monkeypatch.chdir(file.parent)
    file.write_bytes(text.encode("utf-8", "surrogatepass"))
    read_or_refuse(lambda: load_config(["--config", str(file)]))
    assert not (file.parent / "ran").exists()


@FUZZ
@given(data=st.binary(max_size=60))
def test_any_bytes(data, file):
    file.write_bytes(data)
    read_or_refuse(lambda: load_config(["--config", str(file)]))


OPTIONS = st.sampled_from(
    [f"--{key}" for key in KEYS] + ["--config", "--resume", "--", "-", "=", ""]
)


@FUZZ
@given(argv=st.lists(OPTIONS | st.text(max_size=6) | SCALARS.map(str), max_size=5))
def test_any_command_line(argv, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    said = io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        try:
            read_or_refuse(lambda: load_config(argv))
        except SystemExit as leaving:  # It was asked for help.
            assert leaving.code == 0 and said.getvalue()
    assert list(tmp_path.iterdir()) == []


def test_references_that_multiply_do_not_hang(file):
    """Each level ten times the one before: a billion entries, were they written out."""
    levels = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    levels += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 10)]
    file.write_text("\n".join(levels))
    assert read_or_refuse(lambda: load_config(["--config", str(file)])) is None
    file.write_text("data: {mocap: {train: " + "[" * 3000 + "]" * 3000 + "}}")
    assert read_or_refuse(lambda: load_config(["--config", str(file)])) is None
    file.write_text("optim: &a {eps: *a}")
    assert read_or_refuse(lambda: load_config(["--config", str(file)])) is None
