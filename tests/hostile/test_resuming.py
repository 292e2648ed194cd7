"""What a resumed run may change: the table, the documents, and the identity of the data."""

import dataclasses
import os
import shutil
from pathlib import Path

import numpy as np
import pytest

from posemamba_jax.config import from_dict
from posemamba_jax.data.config import DataConfig
from posemamba_jax.data.formats.recordings import MotionFiles
from posemamba_jax.data.identity import identify
from posemamba_jax.data.sources.arrays import ArraysConfig
from posemamba_jax.data.sources.mocap import MocapConfig
from posemamba_jax.errors import UserError
from posemamba_jax.training import resuming

PAGE = Path(__file__).parents[2] / "docs" / "recovery.md"


def config(**changes):
    tree = {"data": {"source": "synthetic"}}
    for key, value in changes.items():
        *sections, name = key.split("__")
        inner = tree
        for section in sections:
            inner = inner.setdefault(section, {})
        inner[name] = value
    return from_dict(tree)


def test_every_key_has_a_rule_and_every_rule_a_key():
    used = [resuming.find_rule(key) for key in resuming.known_keys()]
    assert [rule for rule in resuming.RULES if rule not in used] == []


def test_the_documents_print_the_table():
    assert resuming.table() in PAGE.read_text(encoding="utf-8")


@pytest.mark.parametrize(
    "change",
    [
        {"data__source": "mocap"},
        {"data__clip_len": 27},
        {"data__input_2d": "ground_truth"},
        {"data__synthetic__fps": 25.0},
        {"model__scan": "global"},
        {"model__dim": 32},
        {"seed": 1},
        {"train__batch_size": 2},
    ],
)
def test_refused(change):
    key = next(iter(change)).replace("__", ".")
    with pytest.raises(UserError, match=f"has to keep {key}: .*; *|--run_dir") as caught:
        resuming.compare(config(), config(**change))
    assert key in str(caught.value) and "\n" not in str(caught.value)


def test_told_and_free():
    changes = {"optim__learning_rate": 1.0, "model__implementation": "xla", "eval__flip": False}
    free = {"run_dir": "other", "train__profile": "1..2", "data__mocap__fps": 25.0}
    told = resuming.compare(config(), config(**changes, **free))
    assert sorted(told) == [
        "eval.flip: True -> False",
        "model.implementation: None -> xla",
        "optim.learning_rate: 0.0002 -> 1.0",
    ]


def test_data_is_known_by_its_content(tmp_path):
    (tmp_path / "a").mkdir()
    np.savez(tmp_path / "a" / "one.npz", poses_2d=np.zeros((200, 17, 2)))
    data = DataConfig(source="arrays", arrays=ArraysConfig(train=(str(tmp_path / "a"),)))
    identity = identify(data, "train")
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    os.utime(tmp_path / "b" / "one.npz", (0, 0))
    moved = dataclasses.replace(data, arrays=ArraysConfig(train=(str(tmp_path / "b" / "*.npz"),)))
    assert identify(moved, "train") == identity
    assert identify(dataclasses.replace(data, clip_len=27), "train") != identity
    with (tmp_path / "b" / "one.npz").open("r+b") as file:  # One byte in the middle.
        file.seek(os.fstat(file.fileno()).st_size // 2)
        file.write(b"\x01")
    assert identify(moved, "train") != identity


def test_motion_files_are_known_with_what_is_said_of_them(tmp_path):
    """Their content counts, and their weight and rate, but not where they lie."""
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "walk.bvh").write_text("HIERARCHY")

    def identity(folder, **said):
        files = MotionFiles(str(tmp_path / folder), **said) if said else str(tmp_path / folder)
        mocap = MocapConfig(train=(files,), test=(str(tmp_path / "a"),))
        return identify(DataConfig(source="mocap", mocap=mocap), "train")

    assert identity("a", weight=2.0) == identity("b", weight=2.0)
    assert len({identity("a"), identity("a", weight=2.0), identity("a", fps=60.0)}) == 3
    assert identity("a") == identity("b")
    (tmp_path / "b" / "walk.bvh").write_text("HIERARCHI")
    assert identity("a", weight=2.0) != identity("b", weight=2.0)


def test_synthetic_splits_know_their_own_options():
    def both(**options):
        data = config(**options).data
        return identify(data, "train"), identify(data, "test")

    train, test = both()
    other_train, same_test = both(data__synthetic__num_train_clips=7)
    assert other_train != train and same_test == test
    assert both(data__synthetic__num_test_clips=7) == (
        train,
        both(data__synthetic__num_test_clips=7)[1],
    )
