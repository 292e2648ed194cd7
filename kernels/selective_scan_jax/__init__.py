"""The selective scan of Mamba in JAX, over sequences and over a frames x joints grid.

`selective_scan` is the one-dimensional operator, `cross_scan` the multi-directional one of a
PoseMamba block. Both choose the fastest implementation that runs on the current platform;
`available` and `implementations` report which those are. See docs/selective_scan.md.
"""

from selective_scan_jax.api import cross_scan, selective_scan
from selective_scan_jax.backends import available, default_implementation, implementations
from selective_scan_jax.order import (
    H36M_LIMB_WALK,
    Direction,
    Permutation,
    ScanOrder,
    direction_named,
    limb_term,
)
from selective_scan_jax.sharding.mesh import ScanSharding
from selective_scan_jax.target import Target, interpreted, lowering_for, target_of

__all__ = [
    "H36M_LIMB_WALK",
    "Direction",
    "Permutation",
    "ScanOrder",
    "ScanSharding",
    "Target",
    "available",
    "cross_scan",
    "default_implementation",
    "direction_named",
    "implementations",
    "interpreted",
    "limb_term",
    "lowering_for",
    "selective_scan",
    "target_of",
]
