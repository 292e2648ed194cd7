"""The scans as Pallas kernels on NVIDIA GPUs from Hopper on, by way of Mosaic GPU."""

from selective_scan_jax.mosaic_gpu.operators import cross_scan, selective_scan, unavailable_reason

__all__ = ["cross_scan", "selective_scan", "unavailable_reason"]
