"""The scans in chunks of time, compiled by XLA for any platform."""

from selective_scan_jax.xla.cross import cross_scan
from selective_scan_jax.xla.selective import selective_scan

__all__ = ["cross_scan", "selective_scan"]
