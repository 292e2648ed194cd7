"""Writing predictions: .npz, JSON, CSV and BVH."""

from posemamba_jax.predict.export.bvh import write_bvh
from posemamba_jax.predict.export.result import Result
from posemamba_jax.predict.export.tables import write_csv, write_json, write_npz

# By suffix.
WRITERS = {"npz": write_npz, "json": write_json, "csv": write_csv, "bvh": write_bvh}

__all__ = ["WRITERS", "Result", "write_bvh", "write_csv", "write_json", "write_npz"]
