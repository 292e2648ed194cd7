"""AdamW and the learning rate as a function of the step."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from posemamba_jax.config.schema import OptimConfig

Schedule = Callable[[jnp.ndarray], jnp.ndarray]


def make_schedule(config: OptimConfig, steps_per_epoch: int, total_steps: int) -> Schedule:
    """Makes the learning rate of each step, counted from 0.

    Args:
      config: `schedule`, `learning_rate`, `decay`, `warmup_epochs`.
      steps_per_epoch: steps in one pass over the clips.
      total_steps: where `cosine` reaches zero.

    Returns:
      A function of an int32 scalar that returns a float32 scalar; works inside `jax.jit`.
    """
    warmup_steps = round(config.warmup_epochs * steps_per_epoch)

    def schedule(step):
        if config.schedule == "recipe":
            epoch = (step // steps_per_epoch).astype(jnp.float32)
            rate = config.learning_rate * jnp.float32(config.decay) ** epoch
        else:
            span = max(total_steps - warmup_steps, 1)
            done = jnp.clip((step - warmup_steps) / span, 0.0, 1.0)
            rate = config.learning_rate * 0.5 * (1.0 + jnp.cos(jnp.pi * done))
        if warmup_steps:
            rate = rate * jnp.minimum((step + 1) / warmup_steps, 1.0)
        return jnp.asarray(rate, jnp.float32)

    return schedule


def make_optimizer(config: OptimConfig) -> optax.GradientTransformation:
    """Makes AdamW for a learning rate of one; the step multiplies its update with the rate.

    Decay is decoupled (Loshchilov and Hutter, 2019) and applies to every parameter, norms and
    biases included, as in the authors' release. The rate stays outside so that it follows the
    training step even where an update was skipped.
    """
    return optax.adamw(
        1.0,
        b1=config.beta1,
        b2=config.beta2,
        eps=config.eps,
        weight_decay=config.weight_decay,
    )


def clip_gradients(grads: Any, norm: jnp.ndarray, largest: float | None) -> Any:
    """Scales gradients of global norm `norm` down to `largest`; None leaves them alone."""
    if largest is None:
        return grads
    factor = jnp.minimum(1.0, largest / jnp.maximum(norm, jnp.finfo(jnp.float32).tiny))
    return jax.tree.map(lambda grad: grad * factor, grads)
