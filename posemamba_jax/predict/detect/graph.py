"""Runs a TFLite network in JAX: one function of its weights and a batch of images."""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from posemamba_jax.predict.detect.tflite import Graph, NetworkError, Operation

# Index of a tensor -> its constant value.
Weights = dict[int, np.ndarray]


def build(graph: Graph, outputs: Sequence[int]) -> tuple[Callable, Weights]:
    """Makes a function of a network.

    Args:
      graph: the network, of batch size 1 and float32.
      outputs: indices of the tensors that are wanted; what only others need is left out.

    Returns:
      apply(weights, images) with images (batch, height, width, channels) float32, which gives a
      list of the wanted tensors with that batch; and the weights it takes.
    """
    operations = _needed(graph, outputs)
    used = {i for operation in operations for i in operation.inputs if i >= 0}
    constants = {i: graph.tensors[i].data for i in used if graph.tensors[i].data is not None}
    # Shapes and paddings have to be known when the function is traced; the rest are weights.
    fixed = {i: v for i, v in constants.items() if v.dtype.kind == "i"}
    weights = {i: _arrange(v) for i, v in constants.items() if i not in fixed}

    def apply(weights: Weights, images: jax.Array) -> list[jax.Array]:
        values = {**fixed, **weights, graph.inputs[0]: images}
        for operation in operations:
            inputs = [values[i] if i >= 0 else None for i in operation.inputs]
            shape = graph.tensors[operation.outputs[0]].shape
            values[operation.outputs[0]] = _RUN[operation.name](operation, inputs, shape)
        return [values[i] for i in outputs]

    return apply, weights


def _needed(graph: Graph, wanted: Sequence[int]) -> list[Operation]:
    """Returns the operations on which the wanted tensors depend, in order."""
    needed, kept = set(wanted), []
    for operation in reversed(graph.operations):
        if needed & set(operation.outputs):
            needed |= set(operation.inputs)
            kept.append(operation)
    return kept[::-1]


def _arrange(value: np.ndarray) -> np.ndarray:
    """Returns kernels (out, height, width, in) as (height, width, in, out), which JAX takes."""
    return value.transpose(1, 2, 3, 0) if value.ndim == 4 else value


def _activate(x: jax.Array, operation: Operation) -> jax.Array:
    kind = operation.options.get("activation")
    if kind == "relu":
        return jnp.maximum(x, 0)
    return jnp.clip(x, 0, 6) if kind == "relu6" else x


def _add(operation, inputs, shape):
    return _activate(inputs[0] + inputs[1], operation)


def _concatenate(operation, inputs, shape):
    return _activate(jnp.concatenate(inputs, operation.options["axis"]), operation)


def _convolve(operation, inputs, shape):
    x, kernel, bias = inputs
    options = operation.options
    strides = options["stride_h"], options["stride_w"]
    if kernel.shape[:2] == (1, 1) and strides == (1, 1):
        x = jnp.einsum("bhwi,io->bhwo", x, kernel[0, 0])
    else:
        x = lax.conv_general_dilated(
            x,
            kernel,
            strides,
            options["padding"],
            rhs_dilation=(options["dilation_h"], options["dilation_w"]),
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )
    return _activate(x if bias is None else x + bias, operation)


def _convolve_depthwise(operation, inputs, shape):
    """Returns a sum of shifted products, several times faster on a CPU than XLA's grouped
    convolution.
    """
    x, kernel, bias = inputs
    options = operation.options
    # The file has (1, height, width, channels), `_arrange` made (height, width, channels, 1) of it.
    kernel = kernel[..., 0]
    if options["multiplier"] != 1 or kernel.shape[2] != x.shape[3]:
        raise NetworkError("a depthwise convolution with a multiplier is not known here")
    size = kernel.shape[:2]
    strides = options["stride_h"], options["stride_w"]
    dilations = options["dilation_h"], options["dilation_w"]
    reach = [(n - 1) * d + 1 for n, d in zip(size, dilations, strict=True)]
    x, lengths = _pad(x, reach, strides, options["padding"], 0.0)
    total = 0 if bias is None else bias
    for i in range(size[0]):
        for j in range(size[1]):
            total = total + kernel[i, j] * _shift(
                x, (i * dilations[0], j * dilations[1]), lengths, strides
            )
    return _activate(total, operation)


def _pad(x, reach, strides, padding: str, value: float):
    """Returns the image with the border that "SAME" adds, and the (height, width) of the result."""
    if padding == "VALID":
        lengths = [(n - r) // s + 1 for n, r, s in zip(x.shape[1:3], reach, strides, strict=True)]
        return x, lengths
    borders, lengths = [], []
    for n, r, s in zip(x.shape[1:3], reach, strides, strict=True):
        length = -(-n // s)
        extra = max((length - 1) * s + r - n, 0)
        borders.append((extra // 2, extra - extra // 2))
        lengths.append(length)
    return jnp.pad(x, ((0, 0), *borders, (0, 0)), constant_values=value), lengths


def _shift(x, start, lengths, strides):
    """Returns every `strides`-th pixel from `start` on."""
    stops = [a + (n - 1) * s + 1 for a, n, s in zip(start, lengths, strides, strict=True)]
    return lax.slice(x, (0, *start, 0), (x.shape[0], *stops, x.shape[3]), (1, *strides, 1))


def _pool(operation, inputs, shape):
    options = operation.options
    size = options["filter_h"], options["filter_w"]
    strides = options["stride_h"], options["stride_w"]
    x, lengths = _pad(inputs[0], size, strides, options["padding"], -jnp.inf)
    parts = [_shift(x, (i, j), lengths, strides) for i in range(size[0]) for j in range(size[1])]
    best = parts[0]
    for part in parts[1:]:
        best = jnp.maximum(best, part)
    return _activate(best, operation)


def _depth_to_space(operation, inputs, shape):
    (x,), block = inputs, operation.options["block_size"]
    batch, height, width, channels = x.shape
    x = x.reshape(batch, height, width, block, block, channels // block**2)
    x = x.transpose(0, 1, 3, 2, 4, 5)
    return x.reshape(batch, height * block, width * block, channels // block**2)


def _sigmoid(operation, inputs, shape):
    return jax.nn.sigmoid(inputs[0])


def _reshape(operation, inputs, shape):
    if shape[0] != 1:
        raise NetworkError(f"a network that mixes images of a batch (reshape to {list(shape)})")
    return inputs[0].reshape(inputs[0].shape[0], *shape[1:])


def _resize(operation, inputs, shape):
    if operation.options["align_corners"]:
        raise NetworkError("a resize that aligns corners is not known here")
    x = inputs[0]
    for axis in (1, 2):
        x = _resize_axis(x, axis, shape[axis], operation.options["half_pixel_centers"])
    return x


def _resize_axis(x, axis: int, length: int, half_pixel: bool):
    """Interpolates linearly along one axis; the outermost pixels continue beyond their
    centres.
    """
    before = x.shape[axis]
    shift = 0.5 if half_pixel else 0.0
    places = np.clip((np.arange(length) + shift) * before / length - shift, 0, before - 1)
    low = np.floor(places).astype(int)
    high = np.minimum(low + 1, before - 1)
    share = (places - low).astype(np.float32)
    share = share.reshape([-1 if a == axis else 1 for a in range(4)])
    return jnp.take(x, low, axis) * (1 - share) + jnp.take(x, high, axis) * share


def _pad_constant(operation, inputs, shape):
    x, borders = inputs
    return jnp.pad(x, [tuple(pair) for pair in borders.tolist()])


_RUN = {
    "ADD": _add,
    "CONCATENATION": _concatenate,
    "CONV_2D": _convolve,
    "DEPTHWISE_CONV_2D": _convolve_depthwise,
    "DEPTH_TO_SPACE": _depth_to_space,
    "LOGISTIC": _sigmoid,
    "MAX_POOL_2D": _pool,
    "RESHAPE": _reshape,
    "RESIZE_BILINEAR": _resize,
    "PAD": _pad_constant,
}
