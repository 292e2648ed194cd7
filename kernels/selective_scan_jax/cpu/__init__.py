"""The scans, and the layers around them, as native vector code on a CPU."""

from selective_scan_jax.cpu.call import cross_scan, level, selective_scan, unavailable_reason
from selective_scan_jax.cpu.layers import depthwise_conv_silu, gelu, layer_norm

__all__ = [
    "cross_scan",
    "depthwise_conv_silu",
    "gelu",
    "layer_norm",
    "level",
    "selective_scan",
    "unavailable_reason",
]
