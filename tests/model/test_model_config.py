"""The model's configuration."""

import dataclasses

import jax.numpy as jnp
import pytest
import yaml

from posemamba_jax.model import PoseMambaConfig


def test_presets():
    sizes = {p: PoseMambaConfig.preset(p) for p in "SBL"}
    assert {p: (c.dim, c.depth) for p, c in sizes.items()} == {
        "S": (64, 10),
        "B": (128, 10),
        "L": (128, 20),
    }
    config = PoseMambaConfig.preset("S", depth=3, dtype=jnp.bfloat16)
    assert (config.dim, config.depth, config.dtype) == (64, 3, "bfloat16")
    with pytest.raises(ValueError, match="'XL'; expected one of S, B, L"):
        PoseMambaConfig.preset("XL")


def test_survives_yaml_and_can_be_hashed():
    config = PoseMambaConfig.preset("B", num_joints=3, limb_walk=(0, 0, 1))
    fields = yaml.safe_load(yaml.safe_dump(dataclasses.asdict(config) | {"limb_walk": [0, 0, 1]}))
    assert PoseMambaConfig(**fields) == config
    assert hash(PoseMambaConfig(**fields)) == hash(config)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"dim": 0}, "model.dim: 0"),
        ({"depth": 2.5}, "model.depth: 2.5"),
        ({"num_frames": True}, "model.num_frames: True"),
        ({"mlp_ratio": 0}, "model.mlp_ratio: 0"),
        ({"mlp_ratio": float("nan")}, "model.mlp_ratio: nan"),
        ({"drop_path": 1.0}, "model.drop_path: 1.0"),
        ({"scan": "spiral"}, "model.scan: 'spiral', expected one of limbs, global"),
        ({"limb_gradient": "none"}, "model.limb_gradient"),
        ({"dtype": "float16"}, "model.dtype: 'float16', expected one of float32, bfloat16"),
        ({"dtype": "flaot32"}, "model.dtype: 'flaot32'"),
        ({"remat": "all"}, "model.remat: 'all'"),
        ({"num_joints": 21}, "model.limb_walk: not set"),
        ({"limb_walk": (0, 1)}, "expected 17 joint indices"),
        ({"limb_walk": (17,) * 17}, "from 0 to 16"),
    ],
)
def test_wrong_value_is_named(fields, message):
    with pytest.raises(ValueError, match=message):
        PoseMambaConfig(**fields)
