"""The authors' checkpoints: there and back, and files that do not fit."""

import re
import sys

import jax
import numpy as np
import pytest

from posemamba_jax import convert
from posemamba_jax.config.program import run_main
from posemamba_jax.convert import ConvertError, command, config_from_torch, from_torch, to_torch
from posemamba_jax.model import PoseMambaConfig


def with_prefix(state):
    return {f"module.{key}": value for key, value in state.items()}


def test_round_trip_is_bit_for_bit(release_state):
    back = to_torch(from_torch(with_prefix(release_state)))
    assert set(back) == set(release_state)
    for key, array in release_state.items():
        assert isinstance(back[key], np.ndarray) and back[key].dtype == np.float32
        assert back[key].tobytes() == array.tobytes(), key


def test_round_trip_from_flax(variables):
    again = from_torch(to_torch(variables))
    assert jax.tree.structure(again) == jax.tree.structure(variables)
    jax.tree.map(np.testing.assert_array_equal, again, variables)


def test_configuration_is_read_off_the_shapes(release_state):
    config = config_from_torch(with_prefix(release_state), scan="global")
    assert config == PoseMambaConfig(dim=16, depth=2, num_frames=9, scan="global")
    assert convert.preset_name(config) is None


@pytest.mark.parametrize("preset", ["S", "B", "L"])
def test_presets_are_recognised(preset):
    config = PoseMambaConfig.preset(preset)
    state = {
        key: np.broadcast_to(np.float32(0), shape)
        for key, shape in convert.release_shapes(config).items()
    }
    assert config_from_torch(state) == config
    assert convert.preset_name(config) == preset


def test_release_shapes_are_those_of_the_release(release_state, config):
    expected = {key: array.shape for key, array in release_state.items()}
    assert convert.release_shapes(config) == expected


def test_other_sizes_are_read_too():
    config = PoseMambaConfig(
        dim=24, depth=1, num_frames=5, num_joints=21, mlp_ratio=1.5, state_size=4, scan="global"
    )
    state = {k: np.zeros(s, np.float32) for k, s in convert.release_shapes(config).items()}
    assert config_from_torch(state, scan="global") == config
    with pytest.raises(ValueError, match="limb_walk"):
        config_from_torch(state)


def test_every_wrong_key_is_listed(release_state):
    state = dict(release_state)
    del state["STEblocks.1.op.Ds"], state["head.1.bias"]
    state["backbone.weight"] = state["head.1.weight"]
    with pytest.raises(ConvertError) as error:
        from_torch(state)
    text = str(error.value)
    assert re.search(r"missing: 2\s+head.1.bias\s+STEblocks.1.op.Ds\s", text)
    assert re.search(r"unexpected: 1\s+backbone.weight", text)


def test_every_wrong_shape_is_listed(release_state):
    state = dict(release_state)
    state["STEblocks.1.op.Ds"] = np.zeros(127, np.float32)
    state["TTEblocks.0.mlp.fc1.bias"] = np.zeros((32, 1), np.float32)
    with pytest.raises(ConvertError) as error:
        config_from_torch(state)
    text = str(error.value)
    assert "STEblocks.1.op.Ds is (127,), expected (128,)" in text
    assert "TTEblocks.0.mlp.fc1.bias is (32, 1), expected (32,)" in text
    assert "of another shape: 2" in text


@pytest.mark.parametrize("state", [{}, {"weight": np.zeros(3)}])
def test_another_networks_weights(state):
    with pytest.raises(ConvertError, match="missing"):
        from_torch(state)


def test_sizes_that_no_model_has(release_state):
    state = release_state | {"Spatial_pos_embed": np.zeros(3, np.float32)}
    with pytest.raises(ConvertError, match=r"Spatial_pos_embed \(3,\)"):
        from_torch(state)


def test_integers_are_refused(release_state):
    state = release_state | {"head.1.bias": np.zeros(3, np.int64)}
    with pytest.raises(ConvertError, match="head.1.bias holds int64"):
        from_torch(state)


@pytest.fixture
def checkpoint_file(release_state, tmp_path):
    """A file as the release's training writes it."""
    torch = pytest.importorskip("torch")
    state = with_prefix({k: torch.from_numpy(v.copy()) for k, v in release_state.items()})
    path = tmp_path / "best_epoch.bin"
    parameter = torch.nn.Parameter(state["module.head.1.bias"].clone())
    content = {
        "model_pos": state,
        "optimizer": torch.optim.AdamW([parameter]).state_dict(),
        "epoch": 3,
        "lr": 2e-4,
        "min_loss": np.float64(41.8),
    }
    torch.save(content, path)
    return path


def test_file_of_the_release(checkpoint_file, release_state):
    back = to_torch(from_torch(convert.load_torch_file(checkpoint_file)))
    assert all(back[key].tobytes() == array.tobytes() for key, array in release_state.items())


def test_bare_state_dict(tmp_path, release_state):
    torch = pytest.importorskip("torch")
    torch.save(
        {k: torch.from_numpy(v.copy()) for k, v in release_state.items()}, tmp_path / "a.pth"
    )
    assert set(convert.load_torch_file(tmp_path / "a.pth")) == set(release_state)


def test_command_writes_a_checkpoint(checkpoint_file, tmp_path, capsys, release_state, config):
    checkpoint = pytest.importorskip("posemamba_jax.training.checkpoint")
    assert convert.main([str(checkpoint_file), str(tmp_path / "out")]) == 0
    assert "dim 16, depth 2, 9 frames, 17 joints, scan limbs" in capsys.readouterr().out
    restored_config, restored = checkpoint.load_model(tmp_path / "out")
    assert restored_config == config
    back = to_torch(restored)
    assert all(back[key].tobytes() == array.tobytes() for key, array in release_state.items())


class RunsCode:
    def __reduce__(self):
        return (print, ("a pickle ran code",))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "no such file"),
        (b"not a checkpoint", "a.bin: "),
        (RunsCode(), "could run code"),
        ({"epoch": 3}, "expected a state dict"),
        ({"model_pos": 3}, "expected a state dict"),
    ],
)
def test_unusable_file_is_one_line_of_error(content, message, tmp_path, capsys):
    torch = pytest.importorskip("torch")
    path = tmp_path / "a.bin"
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content is not None:
        torch.save(content, path)
    with pytest.raises(ConvertError, match=message):
        convert.load_torch_file(path)
    assert "ran code" not in capsys.readouterr().out


def test_command_fails_with_one_line(tmp_path, capsys, checkpoint_file):
    assert convert.main([str(tmp_path / "gone.bin"), str(tmp_path / "out")]) == 2
    assert re.fullmatch(r"error: .*gone.bin: no such file\n", capsys.readouterr().err)
    assert convert.main([str(checkpoint_file), str(tmp_path)]) == 2  # a folder of other things
    assert "not empty" in capsys.readouterr().err
    assert convert.main([str(checkpoint_file), str(tmp_path / "out"), "--limb_walk", "0,1"]) == 2
    assert "model.limb_walk" in capsys.readouterr().err


def test_a_mistake_of_the_code_keeps_its_traceback(checkpoint_file, tmp_path, monkeypatch):
    def broken(*_, **__):
        raise ValueError("operands could not be broadcast")

    monkeypatch.setattr(command, "from_torch", broken)
    with pytest.raises(ValueError, match="broadcast"):
        run_main(convert.main, [str(checkpoint_file), str(tmp_path / "out")])


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("STEblocks.999999999.norm.weight", np.zeros(16, np.float32), "unexpected: 1"),
        (f"STEblocks.{'9' * 5000}.norm.weight", np.zeros(16, np.float32), "unexpected: 1"),
        ("Spatial_patch_to_embedding.weight", np.zeros((0, 2), np.float32), "no model has"),
    ],
    ids=["block-1e9", "block-of-5000-digits", "no-width"],
)
def test_sizes_that_would_take_for_ever_are_refused(release_state, key, value, message):
    with pytest.raises(ConvertError, match=message):
        from_torch(release_state | {key: value})


def test_without_torch_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(ModuleNotFoundError, match=r"posemamba-jax\[torch\]"):
        convert.load_torch_file("any.bin")
