"""What a block computes around its scan, as native vector code on a CPU: a pass over memory each.

XLA makes several passes of each of these layers and of its gradient, most of them for intermediate
arrays that these kernels (native/layers.h) compute again instead. Arrays are float32. Like the
scan's, a kernel's gradient is another kernel, which has none.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np

from selective_scan_jax.cpu.call import call_kernel, prepare
from selective_scan_jax.derivative import only_once

_WHAT = "a layer of the native CPU kernels"


def layer_norm(
    x: jax.Array, scale: jax.Array, bias: jax.Array, gate: jax.Array | None = None, *, eps: float
) -> jax.Array:
    """Normalises the last axis, and multiplies with silu(gate) if there is a gate.

    Args:
      x: (..., e) float32.
      scale: (e,), multiplied with the normalised values.
      bias: (e,), added to them.
      gate: (..., e) float32 or None.
      eps: added to the variance.

    Returns:
      An array like x.
    """
    return _layer_norm(prepare((x, scale, bias, gate)), eps)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def _layer_norm(operands, eps):
    (y,) = call_kernel("norm_forward", [operands[0].shape], operands, eps=np.float32(eps))
    return y


def _layer_norm_fwd(operands, eps):
    operands = only_once(_WHAT, operands)
    return _layer_norm(operands, eps), operands


def _layer_norm_bwd(eps, operands, dy):
    x, scale, bias, gate = operands
    dy = only_once(_WHAT, dy)
    shapes = [x.shape, scale.shape, bias.shape, (0,) if gate is None else gate.shape]
    *others, dgate = call_kernel("norm_backward", shapes, (*operands, dy), eps=np.float32(eps))
    return ((*others, None if gate is None else dgate),)


_layer_norm.defvjp(_layer_norm_fwd, _layer_norm_bwd)


def depthwise_conv_silu(x: jax.Array, kernel: jax.Array, bias: jax.Array) -> jax.Array:
    """Convolves a grid with 3 x 3 weights for each channel, zero beyond its edges, and takes SiLU.

    Args:
      x: (b, f, j, e) float32.
      kernel: (3, 3, e), over frames and joints.
      bias: (e,).

    Returns:
      An array like x.
    """
    return _depthwise_conv_silu(prepare((x, kernel, bias)))


@jax.custom_vjp
def _depthwise_conv_silu(operands):
    return call_kernel("conv_forward", [operands[0].shape], operands)[0]


def _depthwise_conv_silu_fwd(operands):
    operands = only_once(_WHAT, operands)
    return _depthwise_conv_silu(operands), operands


def _depthwise_conv_silu_bwd(operands, dy):
    shapes = [a.shape for a in operands]
    return (call_kernel("conv_backward", shapes, (*operands, only_once(_WHAT, dy))),)


_depthwise_conv_silu.defvjp(_depthwise_conv_silu_fwd, _depthwise_conv_silu_bwd)


def gelu(x: jax.Array) -> jax.Array:
    """Computes x times the probability that a normal variable is below x, the exact GELU.

    Args:
      x: float32, of any shape but ().

    Returns:
      An array like x.
    """
    return _gelu(x.astype(jnp.float32))


@jax.custom_vjp
def _gelu(x):
    return call_kernel("gelu_forward", [x.shape], (x,))[0]


def _gelu_fwd(x):
    x = only_once(_WHAT, x)
    return _gelu(x), x


def _gelu_bwd(x, dy):
    return call_kernel("gelu_backward", [x.shape], (x, only_once(_WHAT, dy)))


_gelu.defvjp(_gelu_fwd, _gelu_bwd)
