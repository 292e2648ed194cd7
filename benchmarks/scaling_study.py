"""The scaling study of docs/scaling.md: B and L on v5e and v6e, 1 to 256 chips.

usage: python benchmarks/scaling_study.py [--models b,l] [--chips v5e,v6e] [--table-only]

Needs libtpu, no TPU. Runs `python -m posemamba_jax.scaling` for each, which compiles three steps,
and leaves benchmarks/results/scaling_MODEL_CHIP_16x16.json, docs/images/scaling_*.png and the
summary benchmarks/results/scaling_study.md.
"""

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path

from common import RESULTS, table

ROOT = Path(__file__).parent.parent
IMAGES = ROOT / "docs" / "images"
MESH = "data=64,fsdp=4"


def run(model: str, chip: str) -> None:
    """Makes one report; its picture goes to the docs."""
    command = [
        sys.executable, "-m", "posemamba_jax.scaling", "--topology", f"{chip}:16x16",
        "--config", f"configs/h36m/posemamba_{model}.yaml", "--mesh", MESH, "--out", str(RESULTS),
    ]  # fmt: skip
    print(" ".join(command), flush=True)
    subprocess.run(command, check=True, cwd=ROOT, env=os.environ | {"TF_CPP_MIN_LOG_LEVEL": "3"})
    picture = f"scaling_{model}_{chip}_16x16.png"
    (RESULTS / picture).replace(IMAGES / picture)


def row(data: dict, model: str) -> dict[str, str]:
    """Makes one line of the summary."""
    step = data["step"]
    parts, memory = step["estimate"], step["memory"]
    weak, strong = data["scaling"]["weak"], data["scaling"]["strong"]
    sent = sum(c["sent_bytes"] for c in step["collectives"])
    return {
        "model": model.upper(),
        "slice": data["topology"],
        "state": f"{(memory['params'] + memory['optimizer']) / 2**20:.0f}",
        "peak": f"{memory['peak'] / 2**30:.1f} of {data['chip']['hbm_bytes'] / 2**30:.0f}",
        "matrix": f"{parts['matrix'] * 1e3:.1f}",
        "vector": f"{parts['vector'] * 1e3:.1f}",
        "memory": f"{parts['memory'] * 1e3:.1f}",
        "interconnect": f"{parts['interconnect'] * 1e3:.1f}",
        "sent": f"{sent / 2**20:.0f}",
        "speed": f"{weak[-1]['clips_per_second']:,.0f}",
        "weak": f"{weak[-1]['efficiency']:.0%}",
        "strong": f"{strong[-1]['efficiency']:.0%}",
        "compiled": f"{step['compile_seconds']:.0f}",
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", default="b,l")
    parser.add_argument("--chips", default="v5e,v6e")
    parser.add_argument("--table-only", action="store_true", help="from results that are there")
    args = parser.parse_args()
    rows, versions = [], {}
    for model in args.models.split(","):
        for chip in args.chips.split(","):
            if not args.table_only:
                run(model, chip)
            file = RESULTS / f"scaling_{model}_{chip}_16x16.json"
            if file.is_file():
                data = json.loads(file.read_text())
                versions = data["versions"]
                rows.append(row(data, model))
    columns = {
        "model": "model", "slice": "slice", "state": "state, MiB", "peak": "peak, GiB",
        "matrix": "matrix units, ms", "vector": "vector units, ms", "memory": "memory, ms",
        "interconnect": "interconnect, ms", "sent": "MiB sent", "speed": "clips/s, at most",
        "weak": "weak, 256 to 1", "strong": "strong, 256 to 1", "compiled": "compiled in, s",
    }  # fmt: skip
    text = (
        f"Training steps of 256 clips of 243 frames on 256 chips, mesh {MESH}, per chip; times are "
        f"roofline estimates, memory and what is sent are the compiler's. JAX {versions['jax']}, "
        f"libtpu {versions['libtpu']}, commit {versions['commit'][:7]}.\n\n" + table(rows, columns)
    )
    (RESULTS / "scaling_study.md").write_text(text + "\n")
    print(text)


if __name__ == "__main__":
    main()
