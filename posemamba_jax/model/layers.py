"""Layers that a PoseMamba block is made of, with PyTorch's initialisation.

Parameters are float32; a layer computes in its `dtype` and returns it. `native` asks for the
way that is fastest on one CPU in float32: most layers are then one pass over memory by the scan's
native library, and another for their gradient.
"""

import functools
import math

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.sharding import NamedSharding
from selective_scan_jax import cpu


def uniform(bound: float):
    """Makes an initialiser that draws uniformly in +-bound."""

    def init(key, shape, dtype=jnp.float32):
        return jax.random.uniform(key, shape, dtype, -bound, bound)

    return init


class Dense(nn.Module):
    """Affine map of the last axis, weights and bias uniform in +-1/sqrt(fan_in) as in PyTorch.

    With `halves` the two halves of the features are returned as a pair, without a bias. Where the
    features are split over devices, the weights are cut in two and not the outputs, so that each
    device has its part of both halves and few bytes move.

    Attributes:
      split: for halves, how the features of each are split over a mesh.
      native: multiply matrices, see `product`.
    """

    features: int
    use_bias: bool = True
    dtype: jnp.dtype = jnp.float32
    halves: bool = False
    split: NamedSharding | None = None
    native: bool = False

    @nn.compact
    def __call__(self, x):
        init = uniform(1 / math.sqrt(x.shape[-1]))
        kernel = self.param("kernel", init, (x.shape[-1], self.features))
        x, kernel = x.astype(self.dtype), kernel.astype(self.dtype)
        if self.halves:
            kernel = kernel.reshape(x.shape[-1], 2, -1)
            if self.split is not None:
                kernel = jax.lax.with_sharding_constraint(kernel, self.split)
            # Two products: halves cut out of one are a copy each, and their gradients another two.
            return tuple(product(x, kernel[:, i], self.native) for i in range(2))
        y = product(x, kernel, self.native)
        if self.use_bias:
            y = y + self.param("bias", init, (self.features,)).astype(self.dtype)
        return y


def product(x, kernel, native: bool):
    """Multiplies the last axis of x with kernel (in, out).

    With `native` the other axes are made one. For the gradient by the kernel XLA otherwise writes
    one of the two arrays out transposed first, which on a CPU takes longer than the product.
    """
    if not native:
        return jnp.dot(x, kernel)
    rows = jnp.dot(x.reshape(-1, x.shape[-1]), kernel)
    return rows.reshape(*x.shape[:-1], kernel.shape[-1])


class DepthwiseConv(nn.Module):
    """3x3 convolution over the (frames, joints) grid, zero padding 1, one filter per channel.

    Without `native` it is written as nine shifted multiply-adds. As a grouped convolution, XLA
    takes 23 times as long forward and 8 times with gradients at (1, 243, 17, 256) on a CPU
    (benchmarks/around_the_model.py); on a GPU the sum fuses into one pass over the grid.

    Attributes:
      activation: whether SiLU follows; always so with `native`.
    """

    dtype: jnp.dtype = jnp.float32
    activation: bool = False
    native: bool = False

    @nn.compact
    def __call__(self, x):
        channels = x.shape[-1]
        init = uniform(1 / 3)  # fan_in is 9
        kernel = self.param("kernel", init, (3, 3, channels)).astype(self.dtype)
        bias = self.param("bias", init, (channels,)).astype(self.dtype)
        if self.native:
            return cpu.depthwise_conv_silu(x, kernel, bias)
        y = depthwise_conv(x.astype(self.dtype), kernel, bias)
        return silu(y) if self.activation else y


@jax.custom_vjp
def silu(x):
    """Computes x sigmoid(x); its derivative keeps x alone."""
    return nn.silu(x)


def _silu_slope(x):
    """Returns the derivative of SiLU."""
    sigmoid = jax.nn.sigmoid(x)
    return sigmoid * (1 + x * (1 - sigmoid))


silu.defvjp(lambda x: (silu(x), x), lambda x, grad: (grad * _silu_slope(x),))


@jax.custom_vjp
def depthwise_conv(x, kernel, bias):
    """Returns x (b, f, j, c) convolved with kernel (3, 3, c), as nine shifted multiply-adds.

    The gradient by x is the same sum with the kernel turned around, one pass over the grid. Derived
    by JAX it would be nine padded arrays, and nine shifted copies of x would be kept for it.
    """
    return bias + sum(
        shifted * kernel[i, j] for i, row in enumerate(_shifts(x)) for j, shifted in enumerate(row)
    )


def _shifts(x):
    """Returns x at every position's nine neighbours, zero outside of the grid, as 3 x 3 lists."""
    frames, joints = x.shape[1:3]
    padded = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    return [[padded[:, i : i + frames, j : j + joints] for j in range(3)] for i in range(3)]


def _depthwise_conv_fwd(x, kernel, bias):
    return depthwise_conv(x, kernel, bias), (x, kernel)


def _depthwise_conv_bwd(saved, grad):
    x, kernel = saved
    by_x = depthwise_conv(grad, kernel[::-1, ::-1], jnp.zeros((), grad.dtype))
    # Sums over the grid in float32, whatever the layer computes in.
    wide = grad.astype(jnp.float32)
    by_kernel = jnp.stack(
        [jnp.stack([(wide * s).sum((0, 1, 2)) for s in row]) for row in _shifts(x)]
    )
    return by_x, by_kernel.astype(kernel.dtype), wide.sum((0, 1, 2)).astype(kernel.dtype)


depthwise_conv.defvjp(_depthwise_conv_fwd, _depthwise_conv_bwd)


def layer_norm(x, scale, bias, gate=None, *, eps: float, dtype, native: bool = False):
    """Normalises over the last axis, in float32, and returns `dtype`; times silu(gate) if given."""
    if native:
        return cpu.layer_norm(x, scale, bias, gate, eps=eps)
    return _layer_norm(x, scale, bias, gate, eps, jnp.dtype(dtype))


@functools.partial(jax.custom_vjp, nondiff_argnums=(4, 5))
def _layer_norm(x, scale, bias, gate, eps, dtype):
    """Its gradient keeps the arguments. JAX would keep the centred x, the normalised one and the
    gate's factor too.
    """
    y = (_normalised(x, eps)[0] * scale + bias).astype(dtype)
    return y if gate is None else y * silu(gate)


def _normalised(x, eps):
    """Returns x normalised over the last axis, and what its deviation was divided by."""
    x = x.astype(jnp.float32)
    mean = jnp.mean(x, axis=-1, keepdims=True)
    variance = jnp.mean(jnp.square(x - mean), axis=-1, keepdims=True)
    rate = jax.lax.rsqrt(variance + eps)
    return (x - mean) * rate, rate


def _layer_norm_fwd(x, scale, bias, gate, eps, dtype):
    return _layer_norm(x, scale, bias, gate, eps, dtype), (x, scale, bias, gate)


def _layer_norm_bwd(eps, dtype, saved, grad):
    x, scale, bias, gate = saved
    normalised, rate = _normalised(x, eps)
    inner = grad = grad.astype(jnp.float32)
    by_gate = None
    if gate is not None:
        wide = gate.astype(jnp.float32)
        by_gate = grad * (normalised * scale + bias) * _silu_slope(wide)
        by_gate, grad = by_gate.astype(gate.dtype), grad * nn.silu(wide)
        # The same once more: on a GPU XLA would write it to memory for the sums of rows and of
        # columns. On a TPU it would write what the barrier holds apart.
        apart = jax.lax.platform_dependent(
            wide, cuda=jax.lax.optimization_barrier, default=lambda gate: gate
        )
        inner = inner * nn.silu(apart)
    scaled = inner * scale
    along = jnp.mean(scaled * normalised, axis=-1, keepdims=True)
    by_x = rate * (scaled - jnp.mean(scaled, axis=-1, keepdims=True) - normalised * along)
    rows = tuple(range(x.ndim - 1))
    by_scale, by_bias = (grad * normalised).sum(rows), grad.sum(rows)
    return by_x.astype(x.dtype), by_scale.astype(scale.dtype), by_bias.astype(bias.dtype), by_gate


_layer_norm.defvjp(_layer_norm_fwd, _layer_norm_bwd)


class NormParameters(nn.Module):
    """Scale and bias of a `layer_norm`, as a dictionary, for a norm that several places share."""

    features: int

    @nn.compact
    def __call__(self):
        return {
            "scale": self.param("scale", nn.initializers.ones, (self.features,)),
            "bias": self.param("bias", nn.initializers.zeros, (self.features,)),
        }


class LayerNorm(nn.Module):
    """`layer_norm` with parameters of its own, multiplied with silu(gate) if there is a gate."""

    eps: float
    dtype: jnp.dtype = jnp.float32
    native: bool = False

    @nn.compact
    def __call__(self, x, gate=None):
        scale = self.param("scale", nn.initializers.ones, x.shape[-1:])
        bias = self.param("bias", nn.initializers.zeros, x.shape[-1:])
        options = {"eps": self.eps, "dtype": self.dtype, "native": self.native}
        return layer_norm(x, scale, bias, gate, **options)


@jax.custom_vjp
def gelu(x):
    """Computes the exact GELU; its derivative keeps x alone."""
    return nn.gelu(x, approximate=False)


def _gelu_bwd(x, grad):
    """The derivative is the normal distribution's function, and x times its density."""
    below = jax.scipy.special.ndtr(x.astype(jnp.float32)).astype(x.dtype)
    density = jnp.exp(-jnp.square(x) / 2) / math.sqrt(2 * math.pi)
    return (grad * (below + x * density).astype(x.dtype),)


gelu.defvjp(lambda x: (gelu(x), x), _gelu_bwd)


class MLP(nn.Module):
    """Dense, exact GELU, Dense."""

    width: int
    dtype: jnp.dtype = jnp.float32
    native: bool = False

    @nn.compact
    def __call__(self, x):
        h = Dense(self.width, dtype=self.dtype, native=self.native, name="fc1")(x)
        h = cpu.gelu(h) if self.native else gelu(h)
        return Dense(x.shape[-1], dtype=self.dtype, native=self.native, name="fc2")(h)


def drop_path(branch, rate, key, split_over=()):
    """Drops whole samples and scales the kept ones (stochastic depth, Huang et al., 2016).

    Args:
      branch: (batch, ...) output of a residual branch.
      rate: probability, below 1, that a sample's branch is dropped; may be traced.
      key: PRNG key.
      split_over: mesh axes over which a surrounding `jax.shard_map` has split the batch. A draw
        for the whole batch is made on every device, so that what is dropped does not depend on how
        the batch is split.
    """
    keep = 1 - jnp.asarray(rate, jnp.float32)
    samples, rest = branch.shape[0], (1,) * (branch.ndim - 1)
    if split_over:
        samples *= jax.lax.axis_size(split_over)
    kept = jax.random.bernoulli(key, keep, (samples, *rest))
    if split_over:
        first = jax.lax.axis_index(split_over) * branch.shape[0]
        kept = jax.lax.dynamic_slice_in_dim(kept, first, branch.shape[0])
    return jnp.where(kept, branch / keep.astype(branch.dtype), 0)
