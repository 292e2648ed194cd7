"""`~` is the home folder wherever a path is given, and there may be none."""

import os
import pwd
import shutil
from pathlib import Path

import pytest
from selective_scan_jax import tuning
from trial import ROOT, copy_template, run_command, snapshot

from posemamba_jax.errors import UserError
from posemamba_jax.files.reading import user_path
from posemamba_jax.predict.detect import weights

TRAIN = "train --config tiny.yaml --run_dir new --data.input_2d ground_truth --data.source"
COMMANDS = [
    ("eval --checkpoint ~/run --output ~/scores --pictures 0", 0, "results in {home}/scores"),
    ("predict ~/clip.mp4 --checkpoint ~/run", 2, "{home}/clip.mp4: the file is empty"),
    (
        "predict keypoints/h36m17.npy --checkpoint ~/run --video=~/clip.mp4",
        2,
        "{home}/clip.mp4: the file is empty",
    ),
    ("train --config ~/tiny.yaml --run_dir run", 2, "no such configuration file"),
    ("train --resume ~/gone", 2, "{home}/gone"),
    (f"{TRAIN} arrays --data.arrays.train [~/x.npz] --data.arrays.test [~/x.npz]", 2, "{home}/x"),
    (f"{TRAIN} mocap --data.mocap.train [~/x.bvh] --data.mocap.test [~/x.bvh]", 2, "{home}/x.bvh"),
    (f"{TRAIN} arrays --data.skeleton ~/x.yaml", 2, "~/x.yaml: expected a skeleton with"),
]


@pytest.fixture(scope="module")
def world(template, tmp_path_factory):
    folder = tmp_path_factory.mktemp("home") / "world"
    copy_template(template, folder, ["run"])
    shutil.move(folder / "run", folder / "home")
    for name in ("clip.mp4", "x.npz", "x.bvh", "x.yaml"):
        (folder / "home" / name).write_bytes(b"")
    return folder


@pytest.mark.parametrize(("command", "code", "says"), COMMANDS)
def test_the_home_folder_is_meant(world, command, code, says):
    program, *arguments = command.split()
    outcome = run_command(program, arguments, world)
    assert outcome.code == code, outcome
    assert says.format(home=world / "home") in " ".join(outcome.text.split()), outcome
    assert not [name for name in snapshot(world) if name.startswith("~")]


def test_paths_are_expanded_in_one_place():
    folder = ROOT / "posemamba_jax"
    found = [p for p in folder.rglob("*.py") if ".expanduser(" in p.read_text(encoding="utf-8")]
    assert found == [folder / "files" / "reading.py"]


def test_without_a_home_folder(monkeypatch):
    """As in containers whose user is a number without a name."""

    def unknown(*_):
        raise KeyError

    for name in ("HOME", "XDG_CACHE_HOME", "LOCALAPPDATA", tuning.VARIABLE):
        monkeypatch.delenv(name, raising=False)
    for name in ("getpwuid", "getpwnam"):
        monkeypatch.setattr(pwd, name, unknown)
    for ask in (lambda: user_path("~/run"), weights.cache_folder):
        with pytest.raises(UserError, match="no home folder is known .* set HOME"):
            ask()
    assert user_path("run") == Path("run") and os.fspath(user_path("/a/~b")) == "/a/~b"
    assert tuning.user_table() is None
