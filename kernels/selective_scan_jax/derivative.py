"""One derivative, and a clear refusal of a second one.

A kernel's gradient is another kernel, which has none. JAX would say so in terms of whatever it met
inside; here every array that goes into a kernel's forward or backward pass first goes through an
identity whose own derivative is the explanation.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import jax
from jax.ad_checkpoint import checkpoint_name

# What a scan returns and what its gradient needs bear this name, for policies of `jax.checkpoint`.
RESULTS = "selective_scan"

# Differentiated by JAX from plain operations, as often as one likes.
ALWAYS_DIFFERENTIABLE = ("reference", "associative")


def differentiate_once(run: Callable, vjp: Callable, operands, what: str):
    """Computes run(operands), with the gradient that `vjp` gives and no second one.

    Args:
      run: the computation.
      vjp: takes the operands to the outputs and to a pytree that maps the outputs' gradients to
        (the operands' gradients,), as `jax.vjp` does for `run`.
      operands: a named tuple of arrays, None for absent ones.
      what: the computation and its implementation, for the message.

    What the scan returns and what its gradient needs are called `RESULTS`: under `jax.checkpoint`
    with a policy that saves them, the scan does not run a second time.

    Raises:
      NotImplementedError: when a gradient of it is differentiated again.
    """

    @jax.custom_vjp
    def scan(operands):
        return run(operands)

    def forward(operands):
        kept = vjp(only_once(what, operands))
        return jax.tree.map(lambda array: checkpoint_name(array, RESULTS), kept)

    def backward(pull_back, grads):
        return pull_back(only_once(what, grads))

    scan.defvjp(forward, backward)
    return scan(operands)


@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
def only_once(what, arrays):
    """Returns the arrays; differentiating them raises a NotImplementedError that says `what`."""
    return arrays


@only_once.defjvp
def _refuse(what, primals, tangents):
    raise NotImplementedError(
        f"{what}: second derivatives are not supported, only the first one is. "
        "implementation='reference' (without a sharding) has them."
    )
