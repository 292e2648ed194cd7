"""The report: what it refuses, what it says of virtual devices, curves, steps that do not fit."""

import dataclasses
import json
import math
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import jax
import pytest
from benchmark_modules import load_benchmark

from posemamba_jax.config import load_config
from posemamba_jax.errors import UserError
from posemamba_jax.scaling import advice, kernels, report, study
from posemamba_jax.scaling.chips import CHIPS, parse_topology, slices
from posemamba_jax.scaling.collectives import Collective
from posemamba_jax.scaling.compiled import Memory, Step, bytes_needed, topology_devices
from posemamba_jax.scaling.counting import Work
from posemamba_jax.scaling.kernels import Kernel
from posemamba_jax.scaling.plot import plot_scaling
from posemamba_jax.scaling.request import meshes_that_fit, parse_request
from posemamba_jax.scaling.roofline import estimate

ROOT = Path(__file__).parents[2]
TINY = ["--model.dim=8", "--model.depth=2", "--data.clip_len=9"]
V5E = "v5e:16x16"


# What is asked for


def test_the_mesh_gets_a_clip_per_device_where_the_configuration_has_fewer():
    request = parse_request(["--topology", V5E, "--mesh", "data=64,fsdp=4", *TINY])
    assert dataclasses.asdict(request.config.mesh) == {"data": 64, "fsdp": 4, "tensor": 1}
    assert request.config.train.batch_size == 256
    assert "256 in a batch, instead of the configuration's 4" in request.notes[0]
    kept = parse_request(["--topology", V5E, "--train.batch_size=512", *TINY])
    assert kept.config.train.batch_size == 512
    assert kept.config.mesh.data == 256
    assert kept.notes == ()


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--topology", "v9x:4x4"], r"unknown chip v9x; known are v4, v5e, v5p, v6e.*v5e:4x4"),
        (["--topology", "v5e"], r"'v5e' is not CHIP:SHAPE; for example"),
        (["--topology", "v5e:3x3"], r"no v5e:3x3; a slice of v5e has 2 even numbers up to 16x16"),
        (["--topology", "v5e:32x32"], r"no v5e:32x32.*v5e:16x16"),
        (["--topology", "v5p:4x4"], r"no v5p:4x4; a slice of v5p has 3 even numbers.*v5p:4x4x4"),
        (
            ["--topology", V5E, "--mesh", "data=64,fsdp=8"],
            r"data=64,fsdp=8,tensor=1 does not multiply to 256 devices; these do: "
            r"data=64,fsdp=4; data=32,fsdp=8",
        ),
        (["--topology", V5E, "--mesh", "fsdp=3"], r"fsdp=3.*these do: .*fsdp="),
        (["--topology", V5E, "--mesh", "model=4"], r"axes data, fsdp, tensor, got 'model=4'"),
        (
            ["--topology", "v5e:2x2", "--train.batch_size", "6"],
            r"6 clips cannot be divided into 4 equal parts.*; 4 or 8 can",
        ),
        (["--topology", "v5e:2x2", "--train.batch_sise", "8"], r"did you mean"),
        (["--topology", "v5e:2x2", "--compile-at", "few"], r"--compile-at: expected numbers"),
        (["--virtual-devices", "0"], r"--virtual-devices: 0, must be at least 1"),
        ([], r"give --topology CHIP:SHAPE, such as v5e:16x16, or --virtual-devices N"),
    ],
)
def test_refusals_say_what_would_fit(options, told):
    with pytest.raises(UserError, match=told):
        parse_request([*options, *TINY])


def test_a_refusal_is_one_line_for_the_user():
    done = subprocess.run(
        [sys.executable, "-m", "posemamba_jax.scaling", "--topology", "v5e:5x5"],
        capture_output=True, text=True, timeout=120, check=False, cwd=ROOT,
        env=os.environ | {"PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'kernels'}"},
    )  # fmt: skip
    assert done.returncode == 2
    assert "error: --topology: there is no v5e:5x5" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("devices", [1, 6, 8, 60, 256])
def test_suggested_meshes_fit(devices):
    for mesh in meshes_that_fit({"data": 5, "fsdp": 4, "tensor": 2}, devices):
        assert math.prod(mesh.values()) == devices


@pytest.mark.parametrize("chip", CHIPS.values(), ids=CHIPS)
def test_slices_double_up_to_the_last(chip):
    sizes = [topology.chips for topology in slices(chip, 256)]
    assert sizes == [1, 4, 8, 16, 32, 64, 128, 256]
    assert all(parse_topology(t.name) == t for t in slices(chip, 256))


# Steps that are made up


def make_step(config, topology, *, fits=True, temporary=2**30):
    """Makes a step whose work follows its clips, with one sum of gradients and one of
    activations.
    """
    mesh = dataclasses.asdict(config.mesh)
    devices = math.prod(mesh.values())
    clips = config.train.batch_size / (mesh["data"] * mesh["fsdp"])
    work = Work(1e12 * clips, 1e12 * clips, 1e9 * clips, 0, 1e10 * clips, 0)
    parts = config.train.accumulate
    scan = Kernel(
        "cross_scan", "forward", "frame by frame", 128, 16,
        batch=int(clips / parts), steps=10**4, times=parts, bytes=10**6,
    )  # fmt: skip
    shared = dict(shape="f32[8]", arrays=1, source="blocks/fc1")
    collectives = [
        Collective("all-reduce", bytes=10**7, times=config.train.accumulate, group=devices,
                   axes=("data", "fsdp"), content="gradients", **shared),
        Collective("all-reduce", bytes=int(10**6 * clips), times=20, group=mesh["tensor"],
                   axes=("tensor",), content="activations", **shared),
    ]  # fmt: skip
    return Step(
        mesh=mesh, batch=config.train.batch_size, accumulate=config.train.accumulate,
        implementation="xla", memory=Memory(10**6, 2 * 10**6, 10**4, temporary, 10**5, temporary),
        fits=fits, xla_flops=1.0, xla_bytes=1.0, work=work if fits else None,
        kernels=[scan] if fits else [],
        collectives=[c for c in collectives if c.group > 1] if fits else [], unknown_loops=[],
        model_flops=1e12 * clips, compile_seconds=1.0,
    )  # fmt: skip


@pytest.fixture
def compiled(monkeypatch):
    """Which steps were asked of the compiler: (topology, batch, parts)."""
    asked = []

    def compile_(config, topology):
        asked.append((topology.name, config.train.batch_size, config.train.accumulate))
        return make_step(config, topology)

    monkeypatch.setattr(study, "compile_for_topology", compile_)
    return asked


def make_curves(options, compile_at, largest=256, say=lambda text: None):
    request = parse_request(["--topology", "v5e:4x4", *options, *TINY])
    step = make_step(request.config, request.topology)
    return study.curves(
        request.config, request.topology, step,
        largest=largest, compile_at=compile_at, say=say,
    )  # fmt: skip


OPTIONS = ["--mesh", "fsdp=2,tensor=2", "--train.batch_size", "64"]


def test_curves_keep_the_share_or_the_batch(compiled):
    found = make_curves(OPTIONS, frozenset({1, 16, 256}))
    weak, strong = found["weak"], found["strong"]
    assert [p.topology.chips for p in weak] == [1, 4, 8, 16, 32, 64, 128, 256]
    assert [p.batch / p.mesh["data"] / p.mesh["fsdp"] for p in weak] == [8.0] * 8
    assert all(p.batch == 64 for p in strong)
    assert strong[-1].topology.chips == 128  # 64 clips, two devices share one.
    # Parts keep what a device holds at once at the share that was asked for.
    assert [p.accumulate for p in strong] == [8, 4, 2, 1, 1, 1, 1]
    assert all(math.prod(p.mesh.values()) == p.topology.devices for p in weak + strong)
    # The step at 16 chips was there; a batch of 64 does not go to 256 chips.
    assert compiled == [("v5e:1x1", 8, 1), ("v5e:16x16", 1024, 1), ("v5e:1x1", 64, 8)]
    assert [p.compiled for p in weak] == [True, False, False, True, False, False, False, True]


def test_a_point_that_cannot_be_compiled_is_modelled(compiled, monkeypatch):
    """It costs neither the other points nor the report, and is marked as modelled."""
    compile_ = study.compile_for_topology

    def refusing(config, topology):
        if topology.chips == 1:
            raise UserError("libtpu does not know v5e:1x1")
        return compile_(config, topology)

    monkeypatch.setattr(study, "compile_for_topology", refusing)
    said = []
    found = make_curves(OPTIONS, frozenset({1, 16, 256}), say=said.append)
    assert [p.compiled for p in found["weak"]] == [False] * 3 + [True] + [False] * 3 + [True]
    assert all(p.estimate for p in found["weak"])
    assert any("v5e:1x1 cannot be compiled and is modelled instead" in text for text in said)


def test_modelled_points_are_what_the_compiler_would_have_said(compiled):
    """For work that follows the clips, and gradients that are summed once per part."""
    few, every = make_curves(OPTIONS, frozenset()), make_curves(OPTIONS, None)
    for kind in few:
        for modelled, known in zip(few[kind], every[kind], strict=True):
            assert known.compiled
            assert modelled.estimate.seconds == pytest.approx(known.estimate.seconds, rel=0.05)
            # A compiled point has the model's estimate beside its own, but for the step asked for.
            if modelled.compiled:
                assert known.modelled is modelled.modelled is None
            else:
                assert known.modelled == modelled.estimate
                off = modelled.estimate.seconds / known.estimate.seconds - 1
                assert known.model_error == pytest.approx(off)
                assert modelled.model_error is None


def test_a_curve_that_was_compiled_is_shown_against_the_modelled_one(compiled, tmp_path):
    """In the study's table, where all points were compiled, and in the picture."""
    scaling_study = load_benchmark("scaling_study")
    request = parse_request(["--topology", "v5e:4x4", *OPTIONS, *TINY])
    found = make_curves(OPTIONS, None)
    data = report.header(request)
    data["scaling"] = {kind: [report.point_dict(p) for p in pts] for kind, pts in found.items()}
    head, *_, last = scaling_study.curve(data, "b").splitlines()
    assert head.startswith("B on v5e with every point compiled")
    seconds = found["strong"][-1].estimate.seconds
    assert f"| strong | 128 | 64 | {seconds * 1e3:.2f} | " in last and "%" in last
    assert plot_scaling(found, tmp_path / "curve.png").stat().st_size > 10_000
    data["scaling"]["weak"][1]["made_by"] = "model"
    assert scaling_study.curve(data, "b") is None


def test_efficiency_and_bottleneck(compiled):
    found = make_curves(["--train.batch_size", "16"], None)
    weak = found["weak"]
    assert weak[0].efficiency == 1
    assert weak[0].estimate.bottleneck == "memory"
    assert all(0.5 < p.efficiency < 1 for p in weak[1:])
    text = study.first_bottleneck(found["strong"])
    assert text.startswith("limited by memory bandwidth at 1 chip")
    assert "all-reduce of gradients in blocks/fc1" in text


def test_estimate_by_hand():
    """One clip's worth on a v5e chip of a ring of 16 x 16."""
    topology = parse_topology(V5E)
    work = Work(197e12, 2 * 197e12, 6.16e12, 0, 819e9, 0)
    gather = Collective(
        "all-gather", "f32[8]", 1, 256 * 200 * 10**6, 1, 256, ("data",), "parameters", ""
    )
    parts = estimate(work, [], [gather], topology)
    assert (parts.matrix, parts.vector, parts.memory) == (2, 1, 1)
    # 255 parts of 200 MB through links of 200 GB/s; 15 hops along each of two axes.
    assert parts.interconnect == pytest.approx(0.255 + 30e-6)
    assert parts.seconds == pytest.approx(2.255, rel=1e-4)
    assert parts.bottleneck == "matrix"
    open_ends = parse_topology("v5e:4x4")
    assert open_ends.send_bandwidth == topology.send_bandwidth / 2


def test_a_step_that_does_not_fit_is_told_what_would(monkeypatch, tmp_path, capsys):
    tried = []

    def compile_(config, topology):
        tried.append((config.model.remat, config.train.accumulate))
        fits = config.train.accumulate >= 4
        return make_step(config, topology, fits=fits, temporary=8 * 2**30 if fits else 50 * 2**30)

    for module in (advice, report):
        monkeypatch.setattr(module, "compile_for_topology", compile_)
    options = ["--topology", "v5e:2x2", "--train.batch_size", "64", "--out", str(tmp_path)]
    assert report.run(parse_request([*options, *TINY])) == 2
    assert tried == [(None, 1), ("block", 1), (None, 4)]
    text = capsys.readouterr().out
    assert "DOES NOT FIT" in text
    assert "does not fit: 50.0 GiB of 16 GiB per device" in text
    assert "--model.remat block: does not fit either, 50.0 GiB" in text
    assert "--train.accumulate 4: fits, 8.0 GiB" in text
    (file,) = tmp_path.glob("*.json")
    assert [r["fits"] for r in json.loads(file.read_text())["remedies"]] == [False, True]


def test_what_the_compiler_lacks_is_read_from_its_message():
    text = (
        "RESOURCE_EXHAUSTED: E1000: CompileTimeHbmOom: Ran out of memory on HBM, the total memory "
        "required for HLO temporaries (47.55G) exceeds available HBM (15.75G)."
    )
    assert bytes_needed(text) == round(47.55 * 2**30)
    assert bytes_needed("INTERNAL: something else") is None


# Steps that are real


@pytest.fixture
def quick_compilation():
    """What these programs cost is compilation: code that runs for milliseconds need not be fast."""
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


@pytest.mark.slow
@pytest.mark.skipif(not find_spec("libtpu"), reason="libtpu, the compiler for TPUs, is missing")
@pytest.mark.parametrize("chip", CHIPS)
def test_the_compiler_knows_a_single_chip(chip):
    """Also where it takes a host of four chips for the smallest slice."""
    (smallest,) = slices(CHIPS[chip], 1)
    assert len(topology_devices(smallest)) == smallest.devices


@pytest.mark.slow
def test_virtual_devices_agree_with_one(tmp_path, capsys, quick_compilation):
    """The whole path, on the devices that the tests have."""
    options = ["--virtual-devices", "8", "--mesh", "fsdp=2,tensor=2", "--steps", "2"]
    request = parse_request([*options, "--out", str(tmp_path), *TINY, "--model.depth=1"])
    assert report.run(request) == 0
    text = capsys.readouterr().out
    assert "losses on 8 devices and on one agree" in text
    (file,) = tmp_path.glob("scaling_*.json")
    data = json.loads(file.read_text())
    assert data["losses"]["difference"] < 1e-5
    assert data["step"]["mesh"] == {"data": 2, "fsdp": 2, "tensor": 2}
    assert data["step"]["memory"]["temporary"] > 0
    # What fsdp splits is gathered, and nothing else.
    gathers = [c for c in data["step"]["collectives"] if c["kind"] == "all-gather"]
    assert {c["content"] for c in gathers if "fsdp" in c["axes"]} == {"parameters"}
    sums = [c for c in data["step"]["collectives"] if c["content"] == "gradients"]
    assert {"data", "fsdp"} <= {axis for c in sums for axis in c["axes"]}


@pytest.mark.slow
@pytest.mark.skipif(find_spec("libtpu") is None, reason="needs libtpu: pip install libtpu")
def test_a_slice_is_compiled_for(tmp_path, capsys):
    """Two chips share the parameters, four the batch."""
    options = ["--topology", "v5e:2x2", "--mesh", "fsdp=2", "--largest", "0"]
    request = parse_request([*options, "--out", str(tmp_path), *TINY])
    assert report.run(request) == 0
    (file,) = tmp_path.glob("*.json")
    step = json.loads(file.read_text())["step"]
    depth = load_config(TINY).model.depth
    assert step["fits"]
    assert step["memory"]["peak"] > step["memory"]["params"] + step["memory"]["optimizer"]
    assert step["unknown_loops"] == []
    assert step["all_gathered_bytes"].keys() == {"parameters"}
    assert step["work"]["matrix_flops"] < step["model_flops"] * 1.5
    assert step["work"]["matrix_flops"] > step["model_flops"] * 0.2
    assert step["estimate"]["seconds"] > 0
    assert "limited by" in capsys.readouterr().out

    # Two blocks a depth, four directions, forward and backward; 9 frames are padded to 16.
    assert sum(kernel["times"] for kernel in step["kernels"]) == depth * 2 * 4 * 2
    assert {kernel["batch"] for kernel in step["kernels"]} == {1}
    assert {kernel["steps"] for kernel in step["kernels"]} == {16 * 17}
    figures = {
        (row["kernel"], row["path"]): row["bundles_per_step_and_register"]
        for row in kernels.read_table()["rows"]
        if (row["chip"], row["operator"], row["channels"]) == ("v5e", "cross_scan", 128)
    }
    issued = depth * 2 * 16 * 17 * 2 * sum(figures.values())
    assert step["estimate"]["scan"] == pytest.approx(issued / 1.504e9, rel=1e-2)

    # All depths' gradients travel together.
    sums = [c for c in step["collectives"] if c["content"] == "gradients"]
    assert {c["times"] for c in sums} == {1}
    assert len(sums) <= 2
