"""The summary's counts against the model itself and the published figures."""

import jax
import jax.numpy as jnp
import pytest

from posemamba_jax.model import PoseMamba, PoseMambaConfig
from posemamba_jax.model.summary import layer_costs, main, totals


@pytest.mark.parametrize(
    ("preset", "parameters", "published", "published_gmacs"),
    [
        ("S", 1_470_211, 859_651, 3.6),
        ("B", 4_742_659, 3_357_699, 13.9),
        ("L", 9_450_499, 6_713_859, 27.9),
    ],
)
def test_published_figures(preset, parameters, published, published_gmacs):
    costs = layer_costs(PoseMambaConfig.preset(preset))
    assert totals(costs)[0] == parameters
    counted, multiply_adds = totals(costs, counted_only=True)
    assert counted == published
    assert round(multiply_adds / 1e9, 1) == published_gmacs
    assert totals(costs)[1] > 1.5 * multiply_adds  # what the counter misses is no small thing


@pytest.mark.parametrize("how", [{}, {"input_frame": "person"}, {"confidence": True}])
def test_counts_are_those_of_the_model(how):
    size = {"dim": 24, "depth": 3, "num_frames": 5, "num_joints": 7, "state_size": 4}
    config = PoseMambaConfig(**size, mlp_ratio=1.5, scan="global", **how)
    shapes = jax.eval_shape(PoseMamba(config).init, jax.random.key(0), jnp.zeros((1, 5, 7, 2)))
    assert totals(layer_costs(config))[0] == sum(leaf.size for leaf in jax.tree.leaves(shapes))


def test_multiply_adds_grow_with_the_clip():
    config = PoseMambaConfig.preset("S")
    assert totals(layer_costs(config, 81))[1] * 3 == totals(layer_costs(config, 243))[1]


def test_command(capsys):
    assert main(["--preset", "S", "--num_frames", "27"]) == 0
    output = capsys.readouterr().out
    assert "1,456,387" in output and "859,651" in output  # 216 * 64 fewer in temporal_pos
    assert main(["--preset", "S", "--dim", "0"]) == 2
    assert "model.dim: 0" in capsys.readouterr().err
    assert main(["--frames", "244"]) == 2
    assert "1 to 243" in capsys.readouterr().err
