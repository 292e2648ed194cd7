"""The scans as Triton kernels on NVIDIA GPUs from Ampere on."""

from selective_scan_jax.triton.scan import cross_scan, selective_scan, unavailable_reason

__all__ = ["cross_scan", "selective_scan", "unavailable_reason"]
