"""A model that scans in other directions than the release's four, by configuration alone."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import yaml
from selective_scan_jax import Direction, Permutation

from posemamba_jax import convert
from posemamba_jax.config.loading import to_dict
from posemamba_jax.config.schema import Config
from posemamba_jax.data.config import DataConfig
from posemamba_jax.model import PoseMamba, PoseMambaConfig
from posemamba_jax.model.summary import layer_costs, totals
from posemamba_jax.pictures.ssm_map import describe_direction
from posemamba_jax.predict.export.stablehlo import ExportError, export_model
from posemamba_jax.scaling.compiled import _model_flops

WALK = (0, 0, 1, 2, 0)
SIX = ("frames", "joints", "joints-inner", "frames-reverse", "permutation0", "permutation1-reverse")
# Every frame's joints in another order; an order of three frames together.
PERMUTATIONS = ((4, 2, 0, 1, 3), (14, 1, 2, 7, 3, 5, 0, 6, 8, 12, 9, 10, 11, 4, 13))
SIZES = {"dim": 16, "depth": 2, "num_frames": 3, "num_joints": 5, "state_size": 4}


def six_directions(**changes):
    fields = {"limb_walk": WALK, "directions": SIX, "permutations": PERMUTATIONS}
    return PoseMambaConfig(**SIZES | fields | changes)


def test_the_order_is_the_configurations():
    config = six_directions()
    permutations = Permutation(PERMUTATIONS[0]), Permutation(PERMUTATIONS[1], reverse=True)
    assert config.order.directions == (
        *(Direction(True), Direction(False), Direction(False, True), Direction(True, reverse=True)),
        *permutations,
    )
    takes = [config.order.takes_limb_term(k) for k in range(6)]
    assert takes == [True, False, False, True, True, False]
    assert six_directions(scan="global").order.limb_walk is None
    assert describe_direction(config.order, 5) == "permutation of 15 positions, backwards"
    again = PoseMambaConfig(**yaml.safe_load(yaml.safe_dump(to_dict(config))))
    assert again == config and hash(again) == hash(config)


def test_counts_follow_the_number_of_directions():
    configs = {4: six_directions(directions=SIX[:4], permutations=None), 6: six_directions()}
    costs = {}
    for number, config in configs.items():
        clip = jnp.zeros((1, 3, 5, 2))
        shapes = jax.eval_shape(PoseMamba(config).init, jax.random.key(0), clip)
        assert shapes["params"]["blocks"]["spatial"]["scan"]["A_log"].shape == (2, number, 32, 4)
        costs[number] = layer_costs(config)
        assert totals(costs[number])[0] == sum(leaf.size for leaf in jax.tree.leaves(shapes))
    for four, six in zip(costs[4], costs[6], strict=True):
        per_direction = four.name in (
            *("block/scan/x_proj", "block/scan/dt_proj", "block/scan/recurrence"),
        )
        factor = 6 if per_direction else 4
        assert 4 * six.multiply_adds == factor * four.multiply_adds, four.name
    added = totals(costs[6])[1] - totals(costs[4])[1]
    of_four, of_six = (
        _model_flops(Config(model=config, data=DataConfig(clip_len=3)), 1)
        for config in configs.values()
    )
    # The report counts those of a step.
    assert (of_six - of_four) * totals(costs[4])[1] == pytest.approx(of_four * added)
    assert added > 0


def test_a_checkpoint_of_four_directions_is_refused(release_state, tmp_path, capsys):
    six = ("frames", "joints") * 3
    with pytest.raises(convert.ConvertError, match="scan in 4 directions, the configuration in 6 "):
        convert.config_from_torch(release_state, directions=six)
    torch = pytest.importorskip("torch")
    file = tmp_path / "release.bin"
    torch.save({key: torch.from_numpy(array.copy()) for key, array in release_state.items()}, file)
    arguments = [str(file), str(tmp_path / "out"), "--directions", ",".join(six)]
    assert convert.main(arguments) == 2
    assert "scan in 4 directions, the configuration in 6 (frames, joints" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_six_directions_convert_there_and_back():
    config = six_directions()
    shapes = convert.release_shapes(config)
    assert shapes["STEblocks.1.op.A_logs"] == (6 * 32, 4)
    rng = np.random.default_rng(0)
    state = {key: rng.normal(size=shape).astype(np.float32) for key, shape in shapes.items()}
    back = convert.to_torch(convert.from_torch(state))
    for key, array in state.items():
        np.testing.assert_array_equal(back[key], array)
    rest = {"limb_walk": WALK, "directions": SIX, "permutations": PERMUTATIONS}
    assert convert.config_from_torch(state, **rest) == config
    with pytest.raises(
        convert.ConvertError, match=r"in 6 directions, the configuration in 4 \(lim"
    ):
        convert.config_from_torch(state, limb_walk=WALK)
    state["STEblocks.1.op.dt_projs_bias"] = state["STEblocks.1.op.dt_projs_bias"][:4]
    with pytest.raises(
        convert.ConvertError, match=r"dt_projs_bias is \(4, 32\), expected \(6, 32\)"
    ):
        convert.from_torch(state)


def test_clips_that_a_permutation_does_not_cover_are_refused():
    config = six_directions()
    with pytest.raises(ValueError, match="poses_2d has 2 frames: direction 5 .* does not cover"):
        jax.eval_shape(PoseMamba(config).init, jax.random.key(0), jnp.zeros((1, 2, 5, 2)))
    with pytest.raises(ExportError, match="frames is 2: direction 5"):
        export_model(config, {}, frames=2)


@pytest.mark.slow
def test_six_directions_are_exported():
    """The program without the package gives the model's numbers, permutations included."""
    config = six_directions(depth=1)
    model, clip = PoseMamba(config), jnp.zeros((2, 3, 5, 2))
    shapes = jax.eval_shape(model.init, jax.random.key(0), clip)
    rng = np.random.default_rng(0)
    variables = jax.tree.map(lambda s: rng.normal(0, 0.3, s.shape).astype(np.float32), shapes)
    poses_2d = rng.normal(size=clip.shape).astype(np.float32)
    program = export_model(config, variables, frames=3)
    np.testing.assert_allclose(
        jax.jit(program.call)(poses_2d),
        jax.jit(model.apply)(variables, poses_2d),
        rtol=1e-4,
        atol=1e-5,
    )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"directions": ()}, "model.directions: empty"),
        ({"directions": ("frames", "spiral")}, "model.directions: expected one of .*'spiral'"),
        ({"directions": ("frames",)}, "model.permutations: no entry of model.directions names pe"),
        ({"directions": None}, "model.permutations: no entry"),
        ({"scan": "fs_ft"}, "model.scan: 'fs_ft' has directions of its own"),
        ({"permutations": ((0, 1), (0, 1))}, "permutation0: a permutation of 2 positions does not"),
        ({"permutations": ((0, 1, 1), (0,))}, "permutation0: positions: expected .* 2 is missing"),
        ({"num_frames": 4}, "model.permutations: permutation1: .* does not cover 4 frames"),
    ],
)
def test_wrong_directions_are_named(changes, message):
    with pytest.raises(ValueError, match=message):
        six_directions(**changes)
