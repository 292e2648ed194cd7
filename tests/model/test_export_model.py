"""Exported programs: their numbers, what they are made of, and requests that cannot be met."""

import dataclasses
import re
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export

from posemamba_jax.model import PoseMamba, PoseMambaConfig
from posemamba_jax.predict.export import stablehlo as module
from posemamba_jax.predict.export.stablehlo import ExportError, export_model, serialise
from posemamba_jax.predict.lift import make_predict
from posemamba_jax.skeleton import Skeleton

FORK = Skeleton(
    name="fork",
    joints=("handle", "left tine", "middle tine", "right tine"),
    bones=((0, 1), (0, 2), (0, 3)),
    left=(1,),
    right=(3,),
    limb_walk=(0, 0, 0, 0),
)
FRAMES = 4


@pytest.fixture(scope="module")
def fork_config():
    return PoseMambaConfig(
        dim=8, depth=1, num_frames=5, num_joints=4, state_size=2, limb_walk=FORK.limb_walk
    )


@pytest.fixture(scope="module")
def fork_variables(fork_config):
    clip = jax.ShapeDtypeStruct((1, FRAMES, 4, 2), jnp.float32)
    shapes = jax.eval_shape(PoseMamba(fork_config).init, jax.random.key(0), clip)
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda s: rng.normal(0, 0.3, s.shape).astype(np.float32), shapes)


@pytest.fixture(scope="module")
def exported(fork_config, fork_variables):
    """Made from a configuration that names a backend which could not go along."""
    config = dataclasses.replace(fork_config, implementation="cpu", remat="block")
    return export_model(config, fork_variables, frames=FRAMES, flip=True, skeleton=FORK)


def test_agrees_with_the_model_for_any_batch(exported, fork_config, fork_variables):
    pytest.importorskip("flatbuffers")
    again = export.deserialize(serialise(exported))
    predict = make_predict(fork_config, fork_variables)
    poses_2d = np.random.default_rng(1).uniform(-1, 1, (3, FRAMES, 4, 2)).astype(np.float32)
    expected = (predict(poses_2d) + FORK.flip(predict(FORK.flip(poses_2d)))) / 2
    for batch in (1, 3):
        np.testing.assert_allclose(
            jax.jit(again.call)(poses_2d[:batch]), expected[:batch], rtol=1e-4, atol=1e-5
        )
    with pytest.raises(ValueError, match="[Ss]hape"):
        again.call(poses_2d[:, :2])


def test_is_plain_stablehlo_for_all_platforms(exported):
    assert exported.platforms == ("cpu", "cuda", "tpu")
    assert exported.nr_devices == 1
    # Checks of the symbolic batch are the only calls out of the program.
    calls = set(re.findall(r"custom_call @(\w+)", exported.mlir_module()))
    assert calls <= {"shape_assertion"}


@pytest.mark.parametrize(("precision", "written"), [("highest", "HIGHEST"), ("high", "HIGH")])
def test_precision_of_products_is_written_down(precision, written, fork_config, fork_variables):
    config = dataclasses.replace(fork_config, scan="global")
    text = export_model(
        config, fork_variables, batch_size=1, platforms=["cpu"], matmul_precision=precision
    ).mlir_module()
    products = re.findall(r"dot_general.*precision = \[(\w+), \w+\]", text)
    # The scan's own projections are in full precision whatever is asked for.
    assert written in products and set(products) <= {written, "HIGHEST"}
    assert "tensor<1x5x4x2xf32>" in text and "?" not in text


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        ({"frames": 6}, "frames is 6; the model takes 1 to 5"),
        ({"frames": 0}, "frames is 0"),
        ({"batch_size": 0}, "batch_size is 0"),
        ({"platforms": ["gpu"]}, "platforms are .*expected some of cpu, cuda"),
        ({"platforms": []}, "platforms are"),
        ({"matmul_precision": "double"}, "matmul_precision is 'double'"),
        ({"flip": True}, "'Human3.6M-17' has 17"),
    ],
)
def test_requests_that_cannot_be_met(request_, message, fork_config, fork_variables):
    with pytest.raises(ExportError, match=message):
        export_model(fork_config, fork_variables, **request_)


def test_command_fails_with_one_line(monkeypatch, tmp_path, capsys, fork_config, fork_variables):
    checkpoint = pytest.importorskip("posemamba_jax.model.checkpoint")
    out = tmp_path / "a.stablehlo"
    assert module.main([str(tmp_path / "gone"), str(out)]) == 2
    assert re.fullmatch(r"error: .*gone: no such folder.*\n", capsys.readouterr().err)

    monkeypatch.setattr(checkpoint, "load_model", lambda *_: (fork_config, fork_variables))
    monkeypatch.setattr(module, "export_model", lambda *_, **__: None)
    monkeypatch.setattr(module, "serialise", lambda _: b"program")
    assert module.main(["run", str(tmp_path)]) == 2
    assert "a folder; give the name of a file" in capsys.readouterr().err
    (tmp_path / "file").touch()
    assert module.main(["run", str(tmp_path / "file" / "a.stablehlo")]) == 2
    assert re.fullmatch(r"error: .*file.*\n", capsys.readouterr().err)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_command_passes_its_options_on(
    monkeypatch, tmp_path, capsys, fork_config, fork_variables, exported
):
    checkpoint = pytest.importorskip("posemamba_jax.model.checkpoint")
    monkeypatch.setattr(checkpoint, "load_model", lambda *_: (fork_config, fork_variables))
    given = {}
    monkeypatch.setattr(
        module, "export_model", lambda *_, **options: given.update(options) or exported
    )
    monkeypatch.setattr(module, "serialise", lambda _: b"program")
    out = tmp_path / "a.stablehlo"
    options = "--frames 4 --batch_size 2 --flip --platforms cpu,tpu --matmul_precision default"
    assert module.main(["run", str(out), *options.split()]) == 0
    assert given == {
        "frames": 4,
        "batch_size": 2,
        "flip": True,
        "platforms": ("cpu", "tpu"),
        "matmul_precision": "default",
    }
    assert out.read_bytes() == b"program" and len(list(tmp_path.iterdir())) == 1
    assert "float32(batch, 4, 4, 2) to float32(batch, 4, 4, 3)" in capsys.readouterr().out


def test_without_flatbuffers_the_extra_is_named(monkeypatch, exported):
    monkeypatch.setitem(sys.modules, "flatbuffers", None)
    with pytest.raises(ModuleNotFoundError, match=r"posemamba-jax\[export\]"):
        serialise(exported)
