"""The SSM map against the scan itself."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from selective_scan_jax import limb_term, selective_scan

from posemamba_jax.errors import UserError
from posemamba_jax.model import PoseMamba, PoseMambaConfig
from posemamba_jax.model.layers import Dense, LayerNorm, layer_norm
from posemamba_jax.pictures.ssm_map import (
    compute_maps,
    main,
    over_frames,
    over_joints,
    plot_maps,
    position_map,
    scan_operands,
)
from posemamba_jax.training.checkpoint import save_model

FRAMES, JOINTS = 4, 5
WALK = (0, 0, 1, 0, 3)


@functools.cache
def make_layers(scan="limbs"):
    """Makes a small model, and the operands of its scans for one clip."""
    config = PoseMambaConfig(
        dim=6,
        depth=2,
        num_frames=FRAMES + 2,
        num_joints=JOINTS,
        state_size=3,
        scan=scan,
        limb_walk=WALK,
        implementation="reference",
    )
    poses_2d = jax.random.normal(jax.random.key(1), (FRAMES, JOINTS, 2))
    # Drawn here: compiling the initialisation takes longer than all the rest.
    rng = np.random.default_rng(0)
    shapes = jax.eval_shape(PoseMamba(config).init, jax.random.key(0), poses_2d[None])
    variables = jax.tree.map(lambda p: jnp.asarray(rng.normal(0, 0.5, p.shape), p.dtype), shapes)
    return config, variables, poses_2d, scan_operands(config, variables, poses_2d)


@functools.partial(jax.jit, static_argnames=("order", "k"))
def scan_one_direction(x, delta, A, B, C, D, order, k):
    """Computes (batch, frames, joints, E): direction k's output for activations x, the rest
    fixed.
    """
    direction = order.directions[k]
    u = limb_term(x, order) if order.takes_limb_term(k) else x

    def sequence(array):
        path = direction.to_sequence(array[None, :, :, k])
        return jnp.broadcast_to(path, (len(x), *path.shape[1:]))

    y = selective_scan(
        direction.to_sequence(u),
        sequence(delta),
        A[k],
        sequence(B)[:, :, None],
        sequence(C)[:, :, None],
        D[k],
        reverse=direction.reverse,
        implementation="reference",
    )
    return direction.to_grid(y, FRAMES, JOINTS)


def scan_layer(layer, k, x):
    operands = (layer.delta, layer.A, layer.B, layer.C, layer.D)
    return np.asarray(scan_one_direction(x, *operands, order=layer.order, k=k))


@pytest.mark.parametrize("scan", ["limbs", "bs_bt"])
def test_maps_are_the_finite_differences_of_the_scan(scan):
    *_, layers = make_layers(scan)
    layer = layers[1]
    step = 0.5  # the scan is linear in x: a large step is as exact and rounds less
    impulses = step * np.eye(FRAMES * JOINTS, dtype=np.float32).reshape(-1, FRAMES, JOINTS, 1)
    shape = (FRAMES, JOINTS, FRAMES, JOINTS)
    for k in range(4):
        # Channels do not mix in the scan, so one impulse moves all of them.
        moved = scan_layer(layer, k, layer.x + impulses) - scan_layer(layer, k, layer.x[None])
        response = np.moveaxis(moved, 0, 2) / step  # target frame, joint, source, channel
        expected = np.abs(response).mean(axis=-1).reshape(shape)
        found = position_map(layer, k, include_skip=True)
        np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-5)
        scaled = np.abs(response * np.asarray(layer.x).reshape(FRAMES * JOINTS, -1))
        found = position_map(layer, k, include_skip=True, contribution=True)
        np.testing.assert_allclose(found, scaled.mean(axis=-1).reshape(shape), rtol=1e-3, atol=1e-5)


def test_operands_are_those_the_model_scans():
    """The four directions' outputs, summed, are what the model's output norm and gate saw."""
    config, variables, poses_2d, layers = make_layers()
    run = functools.partial(
        PoseMamba(config).apply,
        capture_intermediates=lambda module, _: isinstance(module, (LayerNorm, Dense)),
        mutable=["intermediates"],
    )
    _, captured = jax.jit(run)(variables, poses_2d[None])
    assert [layer.name for layer in layers] == [
        "spatial 0",
        "temporal 0",
        "spatial 1",
        "temporal 1",
    ]
    for layer in layers:
        block, depth = layer.name.split()
        scan = captured["intermediates"]["blocks"][block]["scan"]
        norms, gates = scan["out_norm"]["__call__"][0], scan["in_proj"]["__call__"][0][1]
        params = variables["params"]["blocks"][block]["scan"]["out_norm"]
        y = sum(scan_layer(layer, k, layer.x[None]) for k in range(4))
        scale, bias = params["scale"][int(depth)], params["bias"][int(depth)]
        found = layer_norm(y, scale, bias, gates[int(depth)], eps=1e-5, dtype=jnp.float32)
        np.testing.assert_allclose(found[0], norms[int(depth), 0], rtol=1e-3, atol=1e-4)


def test_nothing_comes_from_later_on_the_path_and_the_skip_stays_in_place():
    *_, layers = make_layers("bs_bt")
    layer, n = layers[0], FRAMES * JOINTS
    for k in (0, 1):
        path = layer.order.directions[k].path(FRAMES, JOINTS)
        plain, with_skip = (
            position_map(layer, k, include_skip=skip).reshape(n, n)[np.ix_(path, path)]
            for skip in (False, True)
        )
        assert (np.triu(plain, 1) == 0).all() and (np.tril(plain) > 0).sum() == n * (n + 1) // 2
        off_diagonal = ~np.eye(n, dtype=bool)
        np.testing.assert_array_equal(with_skip[off_diagonal], plain[off_diagonal])
        assert (np.diag(with_skip) != np.diag(plain)).all()


def test_sums_over_joints_and_frames_keep_the_total():
    position = np.random.default_rng(0).random((FRAMES, JOINTS, FRAMES, JOINTS))
    assert over_joints(position).sum() * FRAMES == pytest.approx(position.sum())
    assert over_frames(position).sum() * JOINTS == pytest.approx(position.sum())
    position[:, :, :, 2] = 0
    assert (over_joints(position)[:, 2] == 0).all()


def test_all_maps_are_drawn(tmp_path):
    *_, layers = make_layers()
    maps = list(compute_maps(layers))
    assert [(name, k) for name, k, *_ in maps] == [
        (f"{block} {depth}", k)
        for depth in range(2)
        for block in ("spatial", "temporal")
        for k in range(4)
    ]
    rows = [[m for name, _, m, _ in maps if name == layer.name] for layer in layers]
    path = plot_maps(
        rows,
        tmp_path / "new" / "maps.png",
        rows=[layer.name for layer in layers],
        columns=["a", "b", "c", "d"],
        skeleton=None,
    )
    assert path.stat().st_size > 10_000


def test_the_command_draws_the_maps_of_a_clip(tmp_path, capsys):
    config = PoseMambaConfig(dim=8, depth=1, num_frames=9, state_size=2)
    shapes = jax.eval_shape(PoseMamba(config).init, jax.random.key(0), np.zeros((1, 9, 17, 2)))
    variables = jax.tree.map(lambda leaf: np.full(leaf.shape, 0.1, leaf.dtype), shapes)
    model = str(save_model(tmp_path / "model", config, variables))
    command = ["--checkpoint", model, "--out", str(tmp_path / "out"), "--frames", "3"]
    command += ["--data.source", "synthetic", "--data.synthetic.num_test_clips", "2"]
    command += ["--data.clip_len", "9", "--train.compilation_cache", "null"]
    for wrong, message in (
        (["--clip", "2"], "clips 0 to 1"),
        (["--frames", "10"], "expected 1 to 9"),
        (["--depths", "1"], "numbers from 0 to 0"),
    ):
        with pytest.raises(UserError, match=message):
            main([*command, *wrong])
    assert not (tmp_path / "out").exists()
    assert main(command) == 0
    names = {"spatial_joints", "spatial_frames", "temporal_joints", "temporal_frames"}
    assert {path.stem for path in (tmp_path / "out").glob("*.png")} == names
    with np.load(tmp_path / "out" / "maps.npz") as maps:
        assert len(maps.files) == 2 * 4 * 2
        assert maps["temporal_0/direction_3/joints"].shape == (17, 17)
        assert maps["temporal_0/direction_3/frames"].shape == (3, 3)
    assert "wrote" in capsys.readouterr().out
