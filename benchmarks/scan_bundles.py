"""The bundles by which the scaling report times the scan's kernels.

usage: python benchmarks/scan_bundles.py

Copies what `python benchmarks/tpu_static.py` has counted, whole visits of the kernels by chip and
shape, from benchmarks/results/tpu_static.json to posemamba_jax/scaling/scan_bundles.json. Compiles
nothing.
"""

import json
import sys

from common import RESULTS

from posemamba_jax.scaling import kernels

TABLE = RESULTS.parents[1] / "posemamba_jax" / "scaling" / kernels.TABLE
KEYS = ("chip", "operator", "kernel", "path", "channels", "states")


def bundle_rows(data: dict) -> list[dict]:
    """Makes the table's rows from those of tpu_static.json."""
    return [
        {key: row[key] for key in KEYS}
        | {"bundles_per_step_and_register": row["visit_per_step_and_register"]}
        for row in data["schedule"]
    ]


def main() -> None:
    source = RESULTS / "tpu_static.json"
    data = json.loads(source.read_text())
    if not all(set(KEYS) <= row.keys() for row in data.get("schedule", [{}])):
        sys.exit(f"{source} has no schedule by {', '.join(KEYS)}: run benchmarks/tpu_static.py")
    made = data["environment"]
    head = {"command": "python benchmarks/tpu_static.py && python benchmarks/scan_bundles.py"}
    head |= {key: made[key] for key in ("date", "commit", "jax", "libtpu")}
    write_table(head, bundle_rows(data))


def write_table(head: dict, rows: list[dict]) -> None:
    """Writes a row a line."""
    lines = ",\n  ".join(json.dumps(row) for row in rows)
    TABLE.write_text(f'{json.dumps(head)[:-1]}, "rows": [\n  {lines}\n]}}\n')
    print(f"wrote {len(rows)} rows to {TABLE}")


if __name__ == "__main__":
    main()
