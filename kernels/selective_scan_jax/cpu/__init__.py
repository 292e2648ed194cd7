"""The scans as native vector code on a CPU."""

from selective_scan_jax.cpu.call import cross_scan, level, selective_scan, unavailable_reason

__all__ = ["cross_scan", "level", "selective_scan", "unavailable_reason"]
