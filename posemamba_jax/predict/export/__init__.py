"""Writing predictions: .npz, JSON, CSV, BVH, joint angles, and TRC and MOT for OpenSim."""

from posemamba_jax.predict.export.biomechanics import write_angles, write_mot, write_trc
from posemamba_jax.predict.export.bvh import write_bvh
from posemamba_jax.predict.export.result import Result
from posemamba_jax.predict.export.tables import write_csv, write_json, write_npz

# By what follows the person in the file's name.
WRITERS = {
    "npz": write_npz,
    "json": write_json,
    "csv": write_csv,
    "bvh": write_bvh,
    "angles.csv": write_angles,
    "trc": write_trc,
    "mot": write_mot,
}
# Without being asked for.
DEFAULT_OUTPUTS = ("npz", "json", "csv", "bvh", "angles.csv")

__all__ = [
    "DEFAULT_OUTPUTS",
    "WRITERS",
    "Result",
    "write_angles",
    "write_bvh",
    "write_csv",
    "write_json",
    "write_mot",
    "write_npz",
    "write_trc",
]
