"""The scans as Pallas kernels on TPUs, by way of Mosaic."""

from selective_scan_jax.mosaic_tpu.operators import cross_scan, selective_scan

__all__ = ["cross_scan", "selective_scan"]
