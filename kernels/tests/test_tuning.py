"""Block sizes come from a table if it knows the shape and the device, else from the heuristic."""

import argparse
import dataclasses
import json

import jax
import jax.numpy as jnp
import pytest
from selective_scan_jax import Target, lowering_for, tune, tuning

DEVICE = Target("gpu", "A Device", 90)
SHAPE = {"batch": 2, "length": 9}


@dataclasses.dataclass(frozen=True)
class Blocks:
    block: int = 8
    chunk: int = 64

    def candidates(self, shape):
        return [dataclasses.replace(self, block=b) for b in (4, 8, 16) if b <= shape["length"]]


@pytest.fixture(autouse=True)
def table(tmp_path, monkeypatch):
    path = tmp_path / "folder" / "tuning.json"
    monkeypatch.setenv(tuning.VARIABLE, str(path))
    return path


def choose(**shape):
    with lowering_for(DEVICE):
        return tuning.choose("kernel", Blocks(), shape or SHAPE)


def test_the_table_is_for_one_device_kernel_and_shape(table):
    assert choose() == Blocks()
    tuning.record(table, "A Device", "kernel", SHAPE, Blocks(4, 32))
    tuning.record(table, "A Device", "kernel", {"batch": 3}, Blocks(16))
    assert choose() == Blocks(4, 32)
    assert choose(length=9, batch=2) == Blocks(4, 32)
    assert choose(batch=3) == Blocks(16)
    assert choose(batch=4) == Blocks()
    with lowering_for(dataclasses.replace(DEVICE, device_kind="Another")):
        assert tuning.choose("kernel", Blocks(), SHAPE) == Blocks()
        assert tuning.choose("other", Blocks(), SHAPE) == Blocks()


def test_the_users_table_goes_before_the_packaged_one(table, tmp_path, monkeypatch):
    packaged = tmp_path / "packaged.json"
    monkeypatch.setattr(tuning, "PACKAGED", packaged)
    tuning.record(packaged, "A Device", "kernel", SHAPE, Blocks(2))
    assert choose() == Blocks(2)
    tuning.record(table, "A Device", "kernel", SHAPE, Blocks(4))
    assert choose() == Blocks(4)


@pytest.mark.parametrize("content", ["{", "[]", '{"A Device": {"kernel": {"KEY": {"blok": 1}}}}'])
def test_a_damaged_table_is_named(table, content):
    table.parent.mkdir()
    table.write_text(content.replace("KEY", tuning.shape_key(SHAPE)))
    with pytest.raises(ValueError, match=r"tuning\.json: .*tune again"):
        choose()


def test_tuning_takes_the_fastest_that_compiles(monkeypatch):
    cost = {4: 3.0, 8: 2.0}

    def scan(x):
        blocks = tuning.choose("kernel", Blocks(), {"batch": 1, "length": 16})
        if blocks.block not in cost:
            raise ValueError("does not fit")
        return x * blocks.block

    def seconds(function, operands, configs, repeats):
        with tuning.trying(configs):
            jax.jit(lambda *a: function(*a)).lower(*operands)
        return cost[configs["kernel"].block]

    monkeypatch.setattr(tune, "seconds", seconds)
    lines = []
    best = tune.tune(scan, (jnp.ones(3),), 1, lines.append)
    assert best == {"kernel": ({"batch": 1, "length": 16}, Blocks(8), 2.0)}
    assert any("passed over" in line and "does not fit" in line for line in lines)
    cost[4] = 1.0
    assert tune.tune(scan, (jnp.ones(3),), 1, lines.append)["kernel"][1] == Blocks(4)


def test_the_command_says_when_there_is_nothing_to_tune(table, capsys):
    small = "--frames 2 --joints 2 --channels 2 --state 1 --rank 1 --repeats 1 --batch 1"
    tune.main([*small.split(), "--implementations", "xla"])
    assert "nothing to tune here" in capsys.readouterr().out
    assert not table.exists()


def test_shapes_have_as_many_directions_as_are_named():
    sizes = {"frames": 2, "joints": 3, "channels": 4, "state": 2, "rank": 1}
    options = argparse.Namespace(**sizes, directions="frames,joints-inner,frames-reverse")
    _, (x, dt, *_) = tune.cross_case(options, 1, "xla")
    assert (x.shape, dt.shape) == ((1, 2, 3, 4), (1, 2, 3, 3, 1))
    _, (u, _, A, B, *_) = tune.selective_case(options, 1, "xla")
    assert (u.shape, A.shape, B.shape) == ((1, 6, 12), (12, 2), (1, 6, 3, 2))


@pytest.mark.parametrize(
    "wrong", [["--implementations", "no"], ["--operators", "no"], ["--directions", "spiral"]]
)
def test_the_command_refuses_unknown_names(wrong):
    with pytest.raises(SystemExit, match="error: .*expected"):
        tune.main(wrong)


def test_tables_are_json_that_a_person_can_edit(table):
    tuning.record(table, "A Device", "kernel", SHAPE, Blocks(4))
    assert json.loads(table.read_text()) == {
        "A Device": {"kernel": {"batch=2,length=9": {"block": 4, "chunk": 64}}}
    }
