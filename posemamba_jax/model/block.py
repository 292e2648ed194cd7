"""The block: a scan of the grid of frames and joints in several directions, then an MLP."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
from selective_scan_jax import ScanOrder, ScanSharding, cross_scan, limb_term
from selective_scan_jax.backends import resolve
from selective_scan_jax.target import current_target

from posemamba_jax.model.config import PoseMambaConfig
from posemamba_jax.model.layers import (
    MLP,
    Dense,
    DepthwiseConv,
    LayerNorm,
    drop_path,
    product,
    uniform,
)

# Norms inside a block and between blocks; the scan's output norm and the head's.
NORM_EPS = 1e-6
OUT_NORM_EPS = 1e-5


def scan_order(config: PoseMambaConfig) -> ScanOrder:
    """Returns the paths over the grid that the configuration asks for."""
    return config.order


def uses_native_layers(config: PoseMambaConfig, sharding: ScanSharding | None) -> bool:
    """True where the layers around the scan run in the scan's native library for CPUs.

    That is where the scan itself does, in float32 and on one device: the library computes in
    float32, and a compiler does not split its calls over devices.
    """
    return (
        sharding is None and config.dtype == "float32" and resolve(config.implementation) == "cpu"
    )


# The deepest model whose depths are unrolled without being asked for, the preset L.
_UNROLLED_DEPTH = 20


def unrolls(config: PoseMambaConfig, deterministic: bool, sharding: ScanSharding | None) -> bool:
    """True where the depths are compiled one after the other and not as a loop.

    A loop copies what each depth keeps for the backward pass into arrays over all depths and back
    out of them. On a CPU that was a seventh of a training step, and some tens of steps make up for
    the longer compilation; a forward pass keeps nothing.
    """
    if config.scan_layers is not None:
        return not config.scan_layers
    trains_natively = not deterministic and uses_native_layers(config, sharding)
    return trains_natively and config.depth <= _UNROLLED_DEPTH


def recomputes(config: PoseMambaConfig) -> str:
    """Decides what the backward pass computes again: "none", "layers" or "block".

    On a TPU the layers around the scan are cheap to run twice, since what they pass on fits on the
    chip, and what they keep for the backward pass was most of a training step's memory traffic.
    """
    return config.remat or ("layers" if current_target().platform == "tpu" else "none")


def init_dt_bias(key, shape, dtype=jnp.float32):
    """Draws steps log-uniformly from 1e-3..1e-1 and inverts softplus (Gu and Dao, 2023)."""
    low, high = jnp.log(1e-3), jnp.log(1e-1)
    dt = jnp.maximum(jnp.exp(jax.random.uniform(key, shape, dtype, low, high)), 1e-4)
    return dt + jnp.log(-jnp.expm1(-dt))


def init_A_log(key, shape, dtype=jnp.float32):
    """Makes log(1..N) in every channel: A = -1..-N, the real part of S4D (Gu et al., 2022)."""
    return jnp.broadcast_to(jnp.log(jnp.arange(1, shape[-1] + 1, dtype=dtype)), shape)


def project_directions(x, x_proj, order: ScanOrder, native: bool = False):
    """Returns each direction's step input, B and C at every position, side by side.

    The projections see what the scan sees, with the limb term in the order's frame-by-frame
    directions, and act position by position, so they are taken on the grid. Directions with the
    same input share a product, which makes two of four; a kernel that wants the three side by side
    gets them without a copy. On a GPU it is one product of x: the limb term adds up joints, so it
    can as well be taken of the projected rows, which are narrower. Not so where its derivative is
    not its own ("released").

    Args:
      x: (batch, frames, joints, E).
      x_proj: (K, R + 2 N, E).
      order: the K directions.
      native: see `posemamba_jax.model.layers.product`.

    Returns:
      (batch, frames, joints, K, R + 2 N).
    """
    if current_target().platform == "gpu" and order.limb_gradient == "exact":
        highest = jax.lax.Precision.HIGHEST
        rows = jnp.einsum("bfje,kre->bfjkr", x, x_proj, precision=highest)
        return _with_limbs(rows, order)
    x_limbs = limb_term(x, order)
    directions = range(len(order.directions))
    with_limbs = [k for k in directions if order.takes_limb_term(k)]
    without = [k for k in directions if not order.takes_limb_term(k)]
    projected = {}
    for inputs, ks in ((x, without), (x_limbs, with_limbs)):
        if ks:
            weights = x_proj[np.array(ks)]
            if native:
                rows = product(inputs, weights.reshape(-1, weights.shape[-1]).T, native)
                rows = rows.reshape(*x.shape[:3], *weights.shape[:2])
            else:
                highest = jax.lax.Precision.HIGHEST
                rows = jnp.einsum("bfje,kre->bfjkr", inputs, weights, precision=highest)
            projected |= {k: rows[:, :, :, i] for i, k in enumerate(ks)}
    return jnp.stack([projected[k] for k in directions], axis=3)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def _with_limbs(rows, order: ScanOrder):
    """Returns projected rows (b, f, j, K, R + 2 N), with the limb term in directions that take it.

    Linear, so the gradient keeps nothing; JAX would keep which numbers were chosen.
    """
    return _choose_limbs(rows, order)


def _choose_limbs(rows, order):
    takes = np.array([order.takes_limb_term(k) for k in range(len(order.directions))])
    limbs = limb_term(rows.reshape(*rows.shape[:3], -1), order).reshape(rows.shape)
    return jnp.where(takes[:, None], limbs, rows)


_with_limbs.defvjp(
    lambda rows, order: (_with_limbs(rows, order), None),
    lambda order, _, grad: jax.vjp(lambda rows: _choose_limbs(rows, order), grad)[1](grad),
)


class SpatioTemporalScan(nn.Module):
    """Bidirectional global-local spatio-temporal state space model (the paper's Figure 3c).

    (batch, frames, joints, dim) to the same.
    """

    config: PoseMambaConfig
    sharding: ScanSharding | None = None

    @nn.compact
    def __call__(self, h):
        config, dtype = self.config, jnp.dtype(self.config.dtype)
        native = uses_native_layers(config, self.sharding)
        sharding = self.sharding and self.sharding.inside()
        split = None
        if sharding is not None:
            split = NamedSharding(sharding.mesh, P(None, None, sharding.channels))
        in_proj = Dense(2 * config.inner_dim, False, dtype, True, split, native, name="in_proj")
        x, z = in_proj(h)
        x = DepthwiseConv(dtype, activation=True, native=native, name="conv")(x)
        y = self._scan(x.astype(jnp.float32), native)
        y = LayerNorm(OUT_NORM_EPS, dtype, native, name="out_norm")(y, z)
        return Dense(config.dim, False, dtype, native=native, name="out_proj")(y)

    def _scan(self, x, native: bool):
        """Returns (batch, frames, joints, E) to the same; float32 like the release, whatever dtype
        is.
        """
        config, order = self.config, scan_order(self.config)
        E, N, R, K = config.inner_dim, config.state_size, config.dt_rank, len(order.directions)
        x_proj = self.param("x_proj", uniform(E**-0.5), (K, R + 2 * N, E))
        dt_weight = self.param("dt_weight", uniform(R**-0.5), (K, E, R))
        dt_bias = self.param("dt_bias", init_dt_bias, (K, E))
        A_log = self.param("A_log", init_A_log, (K, E, N))
        D = self.param("D", nn.initializers.ones, (K, E))

        rows = project_directions(x, x_proj, order, native)
        dt, B, C = jnp.split(rows, [R, R + N], axis=-1)
        return cross_scan(
            x,
            dt,
            B,
            C,
            dt_weight,
            dt_bias,
            -jnp.exp(A_log),
            D,
            order=order,
            implementation=config.implementation,
            sharding=self.sharding,
        )


class Block(nn.Module):
    """h + DropPath(Scan(LN(h))), then h + DropPath(MLP(LN(h))).

    Attributes:
      config: the model's.
      deterministic: whether stochastic depth is off.
      sharding: how the scan is split over a mesh.
    """

    config: PoseMambaConfig
    deterministic: bool
    sharding: ScanSharding | None = None

    @nn.compact
    def __call__(self, h, drop_rate):
        """Runs the block on h (batch, frames, joints, dim); returns an array like h."""
        config, dtype = self.config, jnp.dtype(self.config.dtype)
        native = uses_native_layers(config, self.sharding)
        branch = LayerNorm(NORM_EPS, dtype, native, name="norm")(h)
        branch = SpatioTemporalScan(config, self.sharding, name="scan")(branch)
        h = h + self._drop_path(branch, drop_rate)
        branch = LayerNorm(NORM_EPS, dtype, native, name="mlp_norm")(h)
        branch = MLP(config.mlp_width, dtype, native, name="mlp")(branch)
        return h + self._drop_path(branch, drop_rate)

    def _drop_path(self, branch, rate):
        if self.deterministic or self.config.drop_path == 0:
            return branch
        split_over = () if self.sharding is None else self.sharding.batch_split_outside()
        return drop_path(branch, rate, self.make_rng("dropout"), split_over)
