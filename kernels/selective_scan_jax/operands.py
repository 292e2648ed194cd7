"""The array operands of the two scans as named tuples, which JAX treats as trees of arrays.

Every backend takes its operands in these two types, gradients come back in them, and the names are
those of the public functions' arguments; the gradient by A is called dA everywhere. All modules
write shapes with these letters:

    b  batch               e  channels, of one direction or group where there are several
    f  frames              n  states per channel
    j  joints              r  rank of the step projection
    l  length, f * j       k  directions of a cross scan
    t  steps of a chunk    g  channel groups of a selective scan
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp


class ScanOperands(NamedTuple):
    """The arrays of a selective scan; absent ones are None.

    Attributes:
      u: (b, l, e), the input sequence.
      delta: (b, l, e), step sizes before bias and softplus.
      A: (e, n), decay rates.
      B: (b, l, g, n), input coefficients per channel group.
      C: (b, l, g, n), output coefficients per channel group.
      D: (e,), skip term, or None.
      delta_bias: (e,), added to delta, or None.
      z: (b, l, e), gate, or None.
      initial_state: (b, e, n), state before the first step, or None for zeros.
    """

    u: jax.Array
    delta: jax.Array
    A: jax.Array
    B: jax.Array
    C: jax.Array
    D: jax.Array | None = None
    delta_bias: jax.Array | None = None
    z: jax.Array | None = None
    initial_state: jax.Array | None = None


class CrossScanOperands(NamedTuple):
    """The arrays of a cross scan; none is ever absent.

    Attributes:
      x: (b, f, j, e), the grid.
      dt: (b, f, j, k, r), input of the step projection.
      B: (b, f, j, k, n), input coefficients per direction.
      C: (b, f, j, k, n), output coefficients per direction.
      dt_weight: (k, e, r), the step projection.
      dt_bias: (k, e), its bias.
      A: (k, e, n), decay rates.
      D: (k, e), skip term.
    """

    x: jax.Array
    dt: jax.Array
    B: jax.Array
    C: jax.Array
    dt_weight: jax.Array
    dt_bias: jax.Array
    A: jax.Array
    D: jax.Array

    def directions(self, ks: Sequence[int]) -> CrossScanOperands:
        """Selects the operands of some of the directions."""
        rows = (jnp.stack([a[:, :, :, k] for k in ks], axis=3) for a in (self.dt, self.B, self.C))
        weights = (jnp.stack([a[k] for k in ks]) for a in self[4:])
        return CrossScanOperands(self.x, *rows, *weights)
