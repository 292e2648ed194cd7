"""A selective scan whose length is split over devices, exactly, by exchanging states.

The recurrence is linear in the state it starts from: over a part of the sequence

    end = decay * start + end0,   decay = exp(A * (sum of the part's step sizes)),

with end0 the end that the part reaches from zero. So each device scans its part from zero for end0,
all devices gather (decay, end0), compose them in order and scan once more, each from its true
start. What travels is two states per device, whatever the length.

The gradient by the state runs the same way from the other end: it leaves a part as
decay * entering + left0, with left0 what leaves when zero enters. left0 is the end of a recurrence
too, g_l = exp(delta_{l+1} A) g_{l+1} + C_l dy_l, so the implementation's forward scan computes it,
walking the other way; the backward scan proper runs once, with the true gradient entering.

A scan costs one more forward pass in each sense, then: three forward passes and one backward where
one device needs one of each.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax

from selective_scan_jax.elementwise import first_state, step_sizes
from selective_scan_jax.operands import ScanOperands

# A step of this size changes no state in float32, and numbers can be divided by it.
_NO_STEP = 1e-20


class SequenceScan:
    """An implementation's `selective_scan` for one device's part; to be called in `shard_map`.

    Args:
      scan: the implementation's `selective_scan`.
      axis: mesh axis that the length is split over.
      delta_softplus, reverse: as in `selective_scan_jax.selective_scan`.
    """

    def __init__(self, scan: Callable, axis: str, *, delta_softplus: bool, reverse: bool):
        self.scan = functools.partial(scan, delta_softplus=delta_softplus, reverse=reverse)
        self.scan_backwards = functools.partial(scan, delta_softplus=False, reverse=not reverse)
        self.axis, self.delta_softplus, self.reverse = axis, delta_softplus, reverse

    def __call__(self, operands: ScanOperands):
        """Gives this part's y, and the state after the last part, the same on all devices."""
        start, last_state = self._start(operands)
        y, _ = self.scan(operands._replace(initial_state=start))
        return y, last_state

    def vjp(self, operands: ScanOperands):
        """Gives the outputs and a pytree that maps their gradients to those of the operands.

        Every device's gradients are of its own part; that by the initial state is zero but on the
        device which starts, so that all of them are summed over the axis alike.
        """
        start, last_state = self._start(operands)
        (y, _), pull_back = jax.vjp(self.scan, operands._replace(initial_state=start))
        return (y, last_state), jax.tree_util.Partial(self._pull_back, operands, pull_back)

    def _pull_back(self, operands, pull_back, grads):
        dy, dlast_state = grads
        left0 = self._adjoint_from_zero(operands, dy)
        entering, dinitial_state = self._compose(
            self._decay(operands), left0, dlast_state, reverse=not self.reverse
        )
        (gradients,) = pull_back((dy, entering))
        initial_state = operands.initial_state
        if initial_state is None:
            return (gradients._replace(initial_state=None),)
        starts = lax.axis_index(self.axis) == (lax.axis_size(self.axis) - 1 if self.reverse else 0)
        dinitial_state = jnp.where(starts, dinitial_state, 0).astype(initial_state.dtype)
        return (gradients._replace(initial_state=dinitial_state),)

    def _start(self, operands):
        """Finds the state before this part, and the one after the last part."""
        _, end0 = self.scan(operands._replace(D=None, z=None, initial_state=None))
        first = first_state(operands.initial_state, operands.u.shape[0], *operands.A.shape)
        return self._compose(self._decay(operands), end0, first, reverse=self.reverse)

    def _steps(self, operands):
        return step_sizes(operands.delta, operands.delta_bias, self.delta_softplus)

    def _decay(self, operands):
        """Computes how much of the state before this part is left after it, (batch, channels,
        state).
        """
        total = self._steps(operands).sum(axis=1)
        return jnp.exp(total[:, :, None] * operands.A.astype(jnp.float32))

    def _compose(self, decay, end0, first, *, reverse: bool):
        """Finds the state that enters this part, and what leaves the last one, if `first` comes
        first.
        """
        parts = lax.all_gather((decay, end0), self.axis)

        def step(state, part):
            decay, end0 = part
            return decay * state + end0, state

        last, entering = lax.scan(step, first, parts, reverse=reverse)
        return entering[lax.axis_index(self.axis)], last

    def _adjoint_from_zero(self, operands, dy):
        """Computes the gradient by the state before this part, if it is zero after it."""
        A, C = operands.A.astype(jnp.float32), operands.C.astype(jnp.float32)
        dy = dy.astype(jnp.float32)
        if operands.z is not None:
            dy = dy * jax.nn.silu(operands.z.astype(jnp.float32))
        steps = self._steps(operands)
        # In the order in which the adjoint walks, each step decays by the one before it. Nothing
        # comes before the first one, where any size will do.
        any_size = jnp.ones_like(steps[:, :1])
        if self.reverse:
            before, last = jnp.concatenate([any_size, steps[:, :-1]], axis=1), steps[:, -1]
        else:
            before, last = jnp.concatenate([steps[:, 1:], any_size], axis=1), steps[:, 0]
        # The scan multiplies its input by the step size, which C_l dy_l does not have.
        before = jnp.where(jnp.abs(before) < _NO_STEP, _NO_STEP, before)
        _, adjoint = self.scan_backwards(ScanOperands(dy / before, before, A, C, C))
        return jnp.exp(last[:, :, None] * A) * adjoint
