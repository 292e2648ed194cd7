"""The loss of clips with 2D poses only, alone and beside clips with 3D."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from posemamba_jax import losses
from posemamba_jax.losses import LossWeights

SHAPE = (5, 4, 17, 3)
HAS_3D = np.array([True, False, True, False, False])


def poses(seed):
    return np.random.default_rng(seed).normal(0, 0.3, SHAPE).astype(np.float32)


def confidences(seed=2):
    return np.random.default_rng(seed).uniform(0, 1, SHAPE[:-1]).astype(np.float32)


def test_projection_2d_is_the_weighted_distance_in_x_and_y():
    pred, target, weights = poses(0), poses(1), confidences()
    expected = 0.0
    for index in np.ndindex(*SHAPE[:-1]):
        dx, dy, _ = pred[index].astype(np.float64) - target[index]
        expected += weights[index] * (dx * dx + dy * dy) ** 0.5
    found = losses.projection_2d(pred, target, weights)
    np.testing.assert_allclose(found, expected / weights.size, rtol=1e-5)


def test_projection_2d_says_nothing_of_depth_and_of_unseen_joints():
    pred, target, weights = poses(0), poses(1), confidences()
    weights[:, :, 3] = 0
    grad = jax.grad(losses.projection_2d)(jnp.asarray(pred), target, weights)
    assert (
        (grad[..., 2] == 0).all() and (grad[:, :, 3] == 0).all() and (grad[..., 4, :2] != 0).all()
    )
    same = jax.grad(losses.projection_2d)(jnp.asarray(target), target, weights)
    assert (same == 0).all(), "the distance's kink is no NaN"


def test_a_mixed_batch_is_the_mean_of_its_clips():
    pred, target, in_2d = poses(0), poses(1), confidences()
    weights = LossWeights(projection_2d=0.7, limb_var=2.0, angle=0.1)
    expected, terms = [], []
    for i in range(len(HAS_3D)):
        one = pred[i : i + 1], target[i : i + 1]
        if HAS_3D[i]:
            loss, one_terms = losses.total(*one, weights)
            terms.append(one_terms)
        else:
            loss = 0.7 * losses.projection_2d(*one, in_2d[i : i + 1])
        expected.append(float(loss))
    loss, found = losses.mixed_total(pred, target, HAS_3D, in_2d, weights)
    np.testing.assert_allclose(loss, np.mean(expected), rtol=1e-5)
    for name in terms[0]:
        np.testing.assert_allclose(found[name], np.mean([t[name] for t in terms]), rtol=1e-5)
    only_2d = [
        losses.projection_2d(*(x[i : i + 1] for x in (pred, target, in_2d))) for i in (1, 3, 4)
    ]
    np.testing.assert_allclose(found["projection_2d"], np.mean(only_2d), rtol=1e-5)


def test_with_3d_everywhere_it_is_the_total():
    pred, target = jnp.asarray(poses(0)), poses(1)
    everywhere = np.ones(len(pred), bool)

    def mixed(pred):
        return losses.mixed_total(pred, target, everywhere, confidences())[0]

    plain, grad = jax.value_and_grad(lambda p: losses.total(p, target)[0])(pred)
    np.testing.assert_allclose(mixed(pred), plain, rtol=1e-6)
    np.testing.assert_allclose(jax.grad(mixed)(pred), grad, rtol=1e-4, atol=1e-8)


def test_terms_without_a_clip_are_nan_and_the_loss_is_not():
    pred, target = jnp.asarray(poses(0)), poses(1)
    for has_3d, missing in ((np.ones(5, bool), "projection_2d"), (np.zeros(5, bool), "pos")):
        (loss, terms), grad = jax.value_and_grad(losses.mixed_total, has_aux=True)(
            pred, target, has_3d, confidences()
        )
        assert np.isnan(terms[missing]) and np.isfinite(loss) and np.isfinite(grad).all()


def test_clips_without_3d_give_depth_no_gradient():
    pred, target = jnp.asarray(poses(0)), poses(1)
    target[~HAS_3D, ..., 2] = 0
    target[1, :, 4:9] = 0  # joints that were not seen
    grad = jax.grad(lambda p: losses.mixed_total(p, target, HAS_3D, confidences())[0])(pred)
    assert np.isfinite(grad).all()
    assert (grad[~HAS_3D, ..., 2] == 0).all() and (grad[HAS_3D, ..., 2] != 0).any()


def test_its_weight_is_no_part_of_the_total_with_3d():
    pred, target = poses(0), poses(1)
    loss, terms = losses.total(pred, target, LossWeights(projection_2d=5.0))
    assert loss == losses.total(pred, target)[0] and "projection_2d" not in terms


def test_weights_of_another_shape_are_refused():
    with pytest.raises(ValueError, match="weights have shape"):
        losses.projection_2d(poses(0), poses(1), confidences()[..., :3])
    with pytest.raises(ValueError, match="projection_2d"):
        LossWeights(projection_2d=-1)
