"""Channels in whole blocks: what the Mosaic GPU kernels' programs take, and back."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from selective_scan_jax.mosaic_gpu.heuristic import CHANNELS


def pad_channels(x, groups: int, axis: int = -1):
    """Fills the channels of each group up to whole blocks; x itself if they are, None if None."""
    if x is None:
        return None
    axis %= x.ndim
    size = x.shape[axis] // groups
    extra = -size % CHANNELS
    if not extra:
        return x
    before, after = x.shape[:axis], x.shape[axis + 1 :]
    widths = [(0, 0)] * (x.ndim + 1)
    widths[axis + 1] = (0, extra)
    x = jnp.pad(x.reshape(*before, groups, size, *after), widths)
    return x.reshape(*before, groups * (size + extra), *after)


def cut_channels(x, channels: int, groups: int, axis: int = -1):
    """Undoes `pad_channels`."""
    axis %= x.ndim
    if x.shape[axis] == channels:
        return x
    before, after = x.shape[:axis], x.shape[axis + 1 :]
    x = x.reshape(*before, groups, x.shape[axis] // groups, *after)
    x = jax.lax.slice_in_dim(x, 0, channels // groups, axis=axis + 1)
    return x.reshape(*before, channels, *after)


def float32(x):
    """Converts x to float32; None stays None."""
    return None if x is None else x.astype(jnp.float32)
