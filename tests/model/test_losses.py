"""Loss terms beside the authors' numbers: shapes, gradients at the edges, the weighted sum."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from posemamba_jax import losses
from posemamba_jax.losses import LossWeights

ONLY_17 = ("weighted_pos", "diff", "limb_var", "limb_gt", "angle", "angle_velocity")
OVER_TIME = ("velocity", "diff", "limb_var", "angle_velocity")


def poses(seed, shape=(2, 5, 17, 3)):
    return jax.random.normal(jax.random.key(seed), shape)


@pytest.mark.parametrize("term", losses.TERMS)
def test_is_a_float32_scalar_even_of_bfloat16(term):
    value = losses.TERMS[term](poses(0).astype(jnp.bfloat16), poses(1))
    assert value.shape == () and value.dtype == jnp.float32


@pytest.mark.parametrize("term", losses.TERMS)
@pytest.mark.parametrize("pred", ["the target", "zeros", "one place"])
def test_gradient_is_finite_where_distances_vanish(term, pred):
    target = poses(0)
    if pred == "the target":
        pred = target
    else:
        pred = jnp.full_like(target, 0.0 if pred == "zeros" else 0.7)
    value, gradient = jax.value_and_grad(losses.TERMS[term])(pred, target)
    assert np.isfinite(value) and np.all(np.isfinite(gradient))


@pytest.mark.parametrize("term", OVER_TIME)
def test_single_frame_has_no_motion(term):
    one = (2, 1, 17, 3)
    value, gradient = jax.value_and_grad(losses.TERMS[term])(poses(0, one), poses(1, one))
    assert value == 0 and not np.any(gradient)


@pytest.mark.parametrize("term", ["pos", "velocity", "limb_gt", "angle", "angle_velocity"])
def test_zero_at_the_target(term):
    assert losses.TERMS[term](poses(0), poses(0)) == 0


def test_scale_does_not_depend_on_the_predictions_scale():
    assert losses.scale(3 * poses(0), poses(0)) < 1e-6
    np.testing.assert_allclose(
        losses.scale(3 * poses(0), poses(1)), losses.scale(poses(0), poses(1)), rtol=1e-5
    )


@pytest.mark.parametrize("term", losses.TERMS)
def test_other_numbers_of_joints(term):
    shape = (2, 5, 21, 3)
    if term in ONLY_17:
        with pytest.raises(ValueError, match=f"'{term}'.*17.*21"):
            losses.TERMS[term](poses(0, shape), poses(1, shape))
    else:
        assert losses.TERMS[term](poses(0, shape), poses(1, shape)) > 0


def test_total_leaves_out_terms_of_weight_zero():
    """With the 17-joint terms at weight 0, 21 joints train."""
    shape = (2, 5, 21, 3)
    loss, terms = losses.total(poses(0, shape), poses(1, shape), LossWeights(diff=0))
    assert set(terms) == {"pos", "scale", "velocity"}
    expected = terms["pos"] + 0.5 * terms["scale"] + 20 * terms["velocity"]
    np.testing.assert_allclose(loss, expected, rtol=1e-6)


def test_total_of_every_term():
    weights = LossWeights(**{term: 0.5 + i for i, term in enumerate(losses.TERMS)})
    loss, terms = losses.total(poses(0), poses(1), weights)
    assert list(terms) == list(losses.TERMS)
    expected = sum(getattr(weights, term) * float(value) for term, value in terms.items())
    np.testing.assert_allclose(loss, expected, rtol=1e-6)


def test_wrong_shapes_and_weights_are_named():
    with pytest.raises(ValueError, match=r"\(2, 5, 17, 3\).*\(2, 4, 17, 3\)"):
        losses.pos(poses(0), poses(1, (2, 4, 17, 3)))
    with pytest.raises(ValueError, match="expected the same"):
        losses.pos(poses(0, (2, 5, 17, 2)), poses(1, (2, 5, 17, 2)))
    with pytest.raises(ValueError, match="velocity: -1"):
        LossWeights(velocity=-1)
    with pytest.raises(ValueError, match="pos: nan"):
        LossWeights(pos=float("nan"))


def test_masked_frames_count_in_no_term():
    rng = np.random.default_rng(0)
    pred, target = rng.normal(size=(2, 2, 7, 17, 3)).astype(np.float32)
    mask = np.ones((2, 7), bool)
    mask[:, 5:] = False
    every = losses.LossWeights(**dict.fromkeys(losses.TERMS, 1.0))
    _, masked = losses.total(pred, target, every, mask=mask)
    _, short = losses.total(pred[:, :5], target[:, :5], every)
    for name, value in short.items():
        np.testing.assert_allclose(masked[name], value, rtol=1e-5, err_msg=name)
    spoiled = pred.copy()
    spoiled[:, 5:] = 1e6
    np.testing.assert_allclose(
        losses.total(spoiled, target, every, mask=mask)[0],
        losses.total(pred, target, every, mask=mask)[0],
        rtol=1e-5,
    )
