"""A scan split over the devices of a mesh, by batch, channels or length."""

from selective_scan_jax.sharding.mesh import ScanSharding, partition, specs
from selective_scan_jax.sharding.sequence import SequenceScan

__all__ = ["ScanSharding", "SequenceScan", "partition", "specs"]
