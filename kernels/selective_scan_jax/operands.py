"""The array operands of the two scans as named tuples, which JAX treats as trees of arrays.

Every backend takes its operands in these two types, gradients come back in them, and the names are
those of the public functions' arguments. Shapes use the letters of `selective_scan_jax.order`'s
grid: B batch, F frames, J joints, E channels, N states, R rank, K directions, L length, G groups.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp


class ScanOperands(NamedTuple):
    """The arrays of a selective scan; absent ones are None.

    Attributes:
      u: (B, L, E), the input sequence.
      delta: (B, L, E), step sizes before bias and softplus.
      A: (E, N), decay rates.
      B: (B, L, G, N), input coefficients per channel group.
      C: (B, L, G, N), output coefficients per channel group.
      D: (E,), skip term, or None.
      delta_bias: (E,), added to delta, or None.
      z: (B, L, E), gate, or None.
      initial_state: (B, E, N), state before the first step, or None for zeros.
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
      x: (B, F, J, E), the grid.
      dt: (B, F, J, K, R), input of the step projection.
      B: (B, F, J, K, N), input coefficients per direction.
      C: (B, F, J, K, N), output coefficients per direction.
      dt_weight: (K, E, R), the step projection.
      dt_bias: (K, E), its bias.
      A: (K, E, N), decay rates.
      D: (K, E), skip term.
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
        """The operands of some of the directions."""
        rows = (jnp.stack([a[:, :, :, k] for k in ks], axis=3) for a in (self.dt, self.B, self.C))
        weights = (jnp.stack([a[k] for k in ks]) for a in self[4:])
        return CrossScanOperands(self.x, *rows, *weights)
