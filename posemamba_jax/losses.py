"""Terms of the training loss, by name, and their weighted sum.

Every term takes `pred` and `target`, (batch, frames, joints, 3) in the same units, and returns a
float32 scalar. Those that depend on what the joints are also take the skeleton, Human3.6M's unless
another is given. `target` is root-relative in training. The terms and the recipe's weights are
those of the authors' release, which has them from MotionBERT (Zhu et al., 2023). Clips that have 2D
poses only are held to those by `projection_2d` instead.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np

from posemamba_jax.errors import ConfigError
from posemamba_jax.limits import Section, number
from posemamba_jax.skeleton import H36M17, Skeleton

# How much a joint counts in `weighted_pos` and `diff`: the ends of limbs move most and err most.
JOINT_WEIGHTS = (1, 1, 2.5, 2.5, 1, 2.5, 2.5, 1, 1, 1, 1.5, 1.5, 4, 4, 1.5, 4, 4)

# Pairs of indices into H36M17.bones whose angle `angle` compares.
BONE_PAIRS = (
    *((0, 3), (0, 6), (3, 6), (0, 1), (1, 2), (3, 4), (4, 5), (6, 7), (7, 10)),
    *((7, 13), (8, 13), (10, 13), (7, 8), (8, 9), (10, 11), (11, 12), (13, 14), (14, 15)),
)


def _weight(default: float) -> float:
    return number(default, at_least=0, at_most=1e30)


@dataclasses.dataclass(frozen=True)
class LossWeights(Section, path="loss"):
    """Weight of each term in the total; the defaults are the authors' recipe.

    `projection_2d` is the one term of clips without 3D poses and weighs nothing elsewhere.

    Raises:
      ValueError: a weight is negative or not finite.
    """

    pos: float = _weight(1.0)
    scale: float = _weight(0.5)
    velocity: float = _weight(20.0)
    diff: float = _weight(0.5)
    weighted_pos: float = _weight(0.0)
    limb_var: float = _weight(0.0)
    limb_gt: float = _weight(0.0)
    angle: float = _weight(0.0)
    angle_velocity: float = _weight(0.0)
    projection_2d: float = _weight(1.0)


def pos(pred, target, *, mask=None):
    """Computes the mean Euclidean distance over batch, frames and joints."""
    pred, target = _as_float32(pred, target)
    return _mean(_norm(pred - target), mask)


def weighted_pos(pred, target, skeleton: Skeleton = H36M17, *, mask=None):
    """Computes `pos` with each joint's distance multiplied by its weight. Joints of Human3.6M-17
    only.
    """
    pred, target = _as_float32(pred, target)
    return _mean(_joint_weights("weighted_pos", pred, skeleton) * _norm(pred - target), mask)


def scale(pred, target, *, mask=None):
    """Computes `pos` after the scale, frame by frame, that fits pred to target best in least
    squares.
    """
    pred, target = _as_float32(pred, target)
    product = jnp.sum(target * pred, axis=(-2, -1), keepdims=True)
    square = jnp.sum(pred * pred, axis=(-2, -1), keepdims=True)
    # A prediction of all zeros has no scale; any factor leaves it at zero.
    factor = product / jnp.where(square > 0, square, 1)
    return _mean(_norm(factor * pred - target), mask)


def velocity(pred, target, *, mask=None):
    """Computes the mean distance between frame-to-frame differences; 0 for a single frame."""
    pred, target = _as_float32(pred, target)
    if pred.shape[-3] < 2:
        return jnp.float32(0)
    return _mean(_norm(_frame_steps(pred) - _frame_steps(target)), _steps_inside(mask))


def diff(pred, target, skeleton: Skeleton = H36M17, *, mask=None):
    """Computes the mean of weight_j * (pred_{t+1} - pred_t)^2 over every element; 0 for a single
    frame.

    Holds the motion down; `target` only has its shape checked. Joints of
    Human3.6M-17 only.
    """
    pred, _ = _as_float32(pred, target)
    weights = _joint_weights("diff", pred, skeleton)[:, None]
    if pred.shape[-3] < 2:
        return jnp.float32(0)
    return _mean(weights * jnp.square(_frame_steps(pred)), _steps_inside(mask))


def limb_var(pred, target, skeleton: Skeleton = H36M17, *, mask=None):
    """Computes the mean over bones of the unbiased variance over time of a bone's length; 0 for one
    frame.
    """
    pred, _ = _as_float32(pred, target)
    lengths = _norm(_bones("limb_var", pred, skeleton))
    if pred.shape[-3] < 2:
        return jnp.float32(0)
    if mask is None:
        return jnp.mean(jnp.var(lengths, axis=-2, ddof=1))
    inside = jnp.asarray(mask, jnp.float32)[..., None]
    count = jnp.sum(inside, axis=-2, keepdims=True)
    centre = jnp.sum(inside * lengths, axis=-2, keepdims=True) / jnp.maximum(count, 1)
    square = jnp.sum(inside * jnp.square(lengths - centre), axis=-2)
    return jnp.mean(square / jnp.maximum(count[..., 0, :] - 1, 1))


def limb_gt(pred, target, skeleton: Skeleton = H36M17, *, mask=None):
    """Computes the mean absolute difference of bone lengths."""
    pred, target = _as_float32(pred, target)
    pred_lengths = _norm(_bones("limb_gt", pred, skeleton))
    return _mean(jnp.abs(pred_lengths - _norm(_bones("limb_gt", target, skeleton))), mask)


def angle(pred, target, skeleton: Skeleton = H36M17, *, mask=None):
    """Computes the mean absolute difference, in radians, of 18 angles between bones of
    Human3.6M-17.
    """
    pred, target = _as_float32(pred, target)
    angles = functools.partial(_angles, "angle", skeleton=skeleton)
    return _mean(jnp.abs(angles(pred) - angles(target)), mask)


def angle_velocity(pred, target, skeleton: Skeleton = H36M17, *, mask=None):
    """Computes the mean absolute difference of the angles' frame-to-frame changes; 0 for a single
    frame.
    """
    pred, target = _as_float32(pred, target)
    if pred.shape[-3] < 2:
        return jnp.float32(0)
    angles = functools.partial(_angles, "angle_velocity", skeleton=skeleton)
    difference = jnp.diff(angles(pred), axis=-2) - jnp.diff(angles(target), axis=-2)
    return _mean(jnp.abs(difference), _steps_inside(mask))


def projection_2d(pred, target, weights):
    """Computes the mean distance in x and y alone, each joint's multiplied by its weight.

    A pose's x and y are its projection, since its units are the image's (weak perspective).

    Args:
      pred: (batch, frames, joints, 3); depth is not looked at.
      target: the same shape and units.
      weights: (batch, frames, joints), the detector's confidence in the target.

    Raises:
      ValueError: shapes that do not fit each other.
    """
    pred, target = _as_float32(pred, target)
    weights = jnp.asarray(weights, jnp.float32)
    if weights.shape != pred.shape[:-1]:
        raise ValueError(f"weights have shape {weights.shape}, expected {pred.shape[:-1]}")
    return jnp.mean(weights * _norm((pred - target)[..., :2]))


TERMS = {
    "pos": pos,
    "scale": scale,
    "velocity": velocity,
    "diff": diff,
    "weighted_pos": weighted_pos,
    "limb_var": limb_var,
    "limb_gt": limb_gt,
    "angle": angle,
    "angle_velocity": angle_velocity,
}

_OF_JOINTS = ("diff", "weighted_pos", "angle", "angle_velocity")
_OF_BONES = ("limb_var", "limb_gt")


def check_terms(weights: LossWeights, skeleton: Skeleton) -> None:
    """Refuses a term of positive weight that does not know the skeleton's joints.

    Raises:
      ConfigError: names the term's weight.
    """
    for name in _OF_JOINTS:
        if getattr(weights, name) > 0 and _from_h36m(skeleton) is None:
            raise ConfigError(
                f"the term is defined for the joints of {H36M17.name}, and {skeleton.name} has "
                "others: set its weight to 0",
                key=f"loss.{name}",
            )


def total(
    pred,
    target,
    weights: LossWeights | None = None,
    skeleton: Skeleton = H36M17,
    *,
    mask=None,
):
    """Computes the weighted sum of the terms.

    Args:
      pred: (batch, frames, joints, 3).
      target: the same shape and units, relative to its root.
      weights: the recipe's where None. A term of weight 0 is not computed.
      skeleton: what the joints are.
      mask: (batch, frames), False in frames that do not count: those that pad a short recording.
        None where all count.

    Returns:
      (loss, terms): a float32 scalar, and the unweighted terms it is made of by name.

    Raises:
      ValueError: shapes differ, or a term of positive weight needs other joints than these.
    """
    weights = dataclasses.asdict(weights or LossWeights())
    terms = {}
    for name, term in TERMS.items():
        if weights[name] > 0:
            own = (skeleton,) if name in _OF_JOINTS + _OF_BONES else ()
            terms[name] = term(pred, target, *own, mask=mask)
    loss = sum((weights[name] * term for name, term in terms.items()), jnp.float32(0))
    return loss, terms


def mixed_total(
    pred,
    target,
    has_3d,
    weights_2d,
    weights: LossWeights | None = None,
    skeleton: Skeleton = H36M17,
    *,
    mask=None,
):
    """Computes the weighted sum of the terms over a batch in which some clips have 2D poses only.

    The loss is the mean over clips of `total` where there are 3D poses and of `projection_2d` times
    its weight elsewhere. So a clip counts the same whatever else is in its batch.

    Args:
      pred: (batch, frames, joints, 3).
      target: the same shape and units; depth of a clip without 3D is not looked at.
      has_3d: (batch,) bool.
      weights_2d: (batch, frames, joints); see `projection_2d`.
      weights: the recipe's where None.
      skeleton: what the joints are.
      mask: as `total` has it, for clips with 3D poses.

    Returns:
      (loss, terms): as `total`, with `projection_2d` among the terms. Each term is the mean over
      the clips that it is for; NaN where the batch has none.

    Raises:
      ValueError: as `total` and `projection_2d`.
    """
    weights = weights or LossWeights()

    def one_clip(*clip):
        pred, target, weights_2d, mask = (x[None] for x in clip)
        loss_3d, terms = total(pred, target, weights, skeleton, mask=mask)
        return loss_3d, terms, projection_2d(pred, target, weights_2d)

    if mask is None:
        mask = jnp.ones(jnp.shape(pred)[:2], bool)
    loss_3d, terms, in_2d = jax.vmap(one_clip)(pred, target, weights_2d, mask)
    has_3d = jnp.asarray(has_3d, bool)
    loss = jnp.mean(jnp.where(has_3d, loss_3d, weights.projection_2d * in_2d))
    means = {name: _mean_where(has_3d, term) for name, term in terms.items()}
    return loss, {**means, "projection_2d": _mean_where(~has_3d, in_2d)}


def _as_float32(pred, target):
    """Checks the pair's shapes; losses are float32 whatever the model computes in."""
    pred, target = jnp.asarray(pred, jnp.float32), jnp.asarray(target, jnp.float32)
    if pred.shape != target.shape or pred.ndim < 3 or pred.shape[-1] != 3:
        raise ValueError(
            f"pred has shape {pred.shape} and target {target.shape}; "
            "expected the same (batch, frames, joints, 3) for both"
        )
    return pred, target


def _norm(x):
    """Computes the Euclidean norm over the last axis, with gradient 0 (as PyTorch's) where x is
    0.
    """
    square = jnp.sum(x * x, axis=-1)
    nonzero = square != 0  # Not `> 0`: a NaN must come out as one.
    # The inner where keeps sqrt's infinite slope at 0 out of the product rule.
    return jnp.where(nonzero, jnp.sqrt(jnp.where(nonzero, square, 1)), 0)


def _mean(x, mask):
    """Returns the mean of x (batch, frames, ...), over the frames that the mask (batch, frames)
    lets count.
    """
    if mask is None:
        return jnp.mean(x)
    counts = jnp.asarray(mask, jnp.float32).reshape(mask.shape + (1,) * (x.ndim - mask.ndim))
    counts = jnp.broadcast_to(counts, x.shape)
    return jnp.sum(counts * x) / jnp.maximum(jnp.sum(counts), 1)


def _steps_inside(mask):
    """Returns (batch, frames - 1) which steps from frame to frame have both of their frames in the
    mask.
    """
    return None if mask is None else jnp.logical_and(mask[..., 1:], mask[..., :-1])


def _mean_where(condition, x):
    """Computes the mean of the values for which the condition holds, NaN if there are none."""
    return jnp.sum(jnp.where(condition, x, 0)) / jnp.sum(condition)


def _frame_steps(x):
    return x[..., 1:, :, :] - x[..., :-1, :, :]


def _from_h36m(skeleton):
    """Finds for each joint of Human3.6M-17 its index in a skeleton of the same joints, else
    None.
    """
    found = skeleton.find(H36M17.joints)
    return found if skeleton.num_joints == H36M17.num_joints else None


def _joint_weights(term, pred, skeleton):
    """Puts the (joints,) weights in the order of the skeleton's joints."""
    places = _from_h36m(skeleton)
    if places is None or pred.shape[-2] != skeleton.num_joints:
        raise ValueError(
            f"loss term {term!r} weights the {len(JOINT_WEIGHTS)} joints of {H36M17.name}, but the "
            f"poses have {pred.shape[-2]} of {skeleton.name}: set its weight to 0"
        )
    weights = np.empty(len(places), np.float32)
    weights[list(places)] = JOINT_WEIGHTS
    return jnp.array(weights)


def _bones(term, poses, skeleton):
    if poses.shape[-2] != skeleton.num_joints:
        raise ValueError(
            f"loss term {term!r} uses the bones of {skeleton.name} ({skeleton.num_joints} joints), "
            f"but the poses have {poses.shape[-2]} joints: set its weight to 0"
        )
    parents, children = np.array(skeleton.bones).T
    return poses[..., children, :] - poses[..., parents, :]


def _angles(term, poses, *, skeleton):
    """Computes (..., frames, 18) angles between the bones of each of BONE_PAIRS, in radians."""
    places = _from_h36m(skeleton)
    if places is None or poses.shape[-2] != skeleton.num_joints:
        raise ValueError(
            f"loss term {term!r} uses the bones of {H36M17.name} ({H36M17.num_joints} joints), "
            f"but the poses have {poses.shape[-2]} of {skeleton.name}: set its weight to 0"
        )
    first, second = np.array(BONE_PAIRS).T
    bones = _bones(term, poses[..., list(places), :], H36M17)
    # A bone shorter than 1e-8 has no direction; PyTorch's cosine_similarity holds it there too.
    lengths = jnp.maximum(_norm(bones), 1e-8)
    cosine = jnp.sum(bones[..., first, :] * bones[..., second, :], axis=-1)
    cosine = cosine / (lengths[..., first] * lengths[..., second])
    # acos has infinite slope at +-1.
    return jnp.arccos(jnp.clip(cosine, -1 + 1e-7, 1 - 1e-7))
