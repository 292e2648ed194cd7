"""The scaling study of docs/scaling.md: B and L on v5e and v6e, 1 to 256 chips.

usage: python benchmarks/scaling_study.py [--models b,l] [--chips v5e,v6e] [--table-only]
           [--compile-at 1,256]

Needs libtpu, no TPU. Runs `python -m posemamba_jax.scaling` for each, which compiles three steps
(15 with `--compile-at all`), and leaves benchmarks/results/scaling_MODEL_CHIP_16x16.json,
docs/images/scaling_*.png and the summary benchmarks/results/scaling_study.md, which it puts into
docs/scaling.md too. Reports of other models and chips stay in the summary as they are.
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


PAGE = ROOT / "docs" / "scaling.md"
# The page has the summary between these two lines.
MARKS = "<!-- benchmarks/scaling_study.py writes this -->", "<!-- up to here -->"
PARTS = {
    "scan": "scan kernels",
    "matrix": "matrix units",
    "vector": "vector units",
    "memory": "memory",
    "interconnect": "interconnect",
}


def run(model: str, chip: str, compile_at: str) -> None:
    """Makes one report; its picture goes to the docs."""
    command = [
        sys.executable, "-m", "posemamba_jax.scaling", "--topology", f"{chip}:16x16",
        "--config", f"configs/h36m/posemamba_{model}.yaml", "--mesh", MESH, "--out", str(RESULTS),
        "--compile-at", compile_at,
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
        "gathered": f"{sum(step['all_gathered_bytes'].values()) / 2**20:.1f}",
        "sent": f"{sent / 2**20:.0f}",
        **{part: f"{parts[part] * 1e3:.2f}" for part in PARTS},
        "step": f"{parts['seconds'] * 1e3:.1f}",
        "speed": f"{weak[-1]['clips_per_second']:,.0f}",
        "weak": f"{weak[-1]['efficiency']:.1%}",
        "strong": f"{strong[-1]['efficiency']:.1%}",
    }


def sentence(data: dict, model: str) -> str:
    """Says of one report what limits the step and what it sends."""
    step = data["step"]
    parts = step["estimate"]
    limit = PARTS[parts["bottleneck"]]
    sums = [c for c in step["collectives"] if c["content"] == "gradients"]
    messages = sum(c["times"] for c in sums)
    size = sum(c["bytes"] * c["times"] for c in sums) / 2**20
    kernels = sum(k["times"] * k["bytes"] for k in step["kernels"])
    moved = step["work"]["memory_bytes"]
    first, *_, last = data["scaling"]["weak"]
    made = {"compiler": "compiled", "model": "modelled"}[first["made_by"]]
    points = [point for found in data["scaling"].values() for point in found]
    errors = [point["model_error"] for point in points if point.get("model_error") is not None]
    return (
        f"- {model.upper()} on {data['topology']}: the {limit} take "
        f"{parts[parts['bottleneck']] / parts['seconds']:.0%} of the step, the interconnect "
        f"{parts['interconnect'] / parts['seconds']:.1%}. Gradients are summed in {messages} "
        f"message{'s' if messages > 1 else ''} of {size:.1f} MiB in all. A chip moves "
        f"{moved / 1e9:.1f} GB from and to its memory, {kernels / 1e9:.1f} GB of it in kernels. "
        f"Weak scaling leaves {last['efficiency']:.1%} of the speed per chip at {last['chips']} "
        f"chips ({made} at one)."
    ) + (
        f" The model is at most {max(map(abs, errors)):.1%} off at the {len(errors)} points that "
        "were compiled beside that."
        if errors
        else ""
    )


def curve(data: dict, model: str) -> str | None:
    """Sets the curves of a report that compiled all points beside what the model makes of them."""
    points = [(kind, point) for kind, found in data["scaling"].items() for point in found]
    if any(point["made_by"] == "model" for _, point in points):
        return None
    rows = []
    for kind, point in points:
        row = {
            "scaling": kind,
            "chips": str(point["chips"]),
            "batch": str(point["batch"]),
            "compiled": f"{point['estimate']['seconds'] * 1e3:.2f}",
            "efficiency": f"{point['efficiency']:.1%}",
        }
        # The step that was asked for is what the model starts from.
        if point["modelled"]:
            row["modelled"] = f"{point['modelled']['seconds'] * 1e3:.2f}"
            row["error"] = f"{point['model_error']:+.1%}"
        rows.append(row)
    columns = {
        "scaling": "scaling", "chips": "chips", "batch": "clips", "compiled": "compiled, ms",
        "modelled": "modelled, ms", "error": "off by", "efficiency": "efficiency, compiled",
    }  # fmt: skip
    return (
        f"{model.upper()} on {data['chip']['name']} with every point compiled, and what the model "
        f"makes of the step of {data['topology']} for it:\n\n{table(rows, columns)}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", default="b,l")
    parser.add_argument("--chips", default="v5e,v6e")
    parser.add_argument("--compile-at", default="1,256", help="as in the report")
    parser.add_argument("--table-only", action="store_true", help="from results that are there")
    args = parser.parse_args()
    rows, sentences, tables, pictures, versions = [], [], [], [], {}
    for model in ("b", "l"):
        for chip in ("v5e", "v6e"):
            chosen = model in args.models.split(",") and chip in args.chips.split(",")
            if chosen and not args.table_only:
                run(model, chip, args.compile_at)
            file = RESULTS / f"scaling_{model}_{chip}_16x16.json"
            if file.is_file():
                data = json.loads(file.read_text())
                versions = data["versions"]
                rows.append(row(data, model))
                sentences.append(sentence(data, model))
                tables.append(curve(data, model))
                title = f"Scaling of {model.upper()} on {chip}"
                pictures.append(f"![{title}](images/{file.stem}.png)")
    if not rows:
        sys.exit(f"{RESULTS} has no reports; leave out --table-only to make them")
    columns = {
        "model": "model", "slice": "slice", "state": "state, MiB", "peak": "peak, GiB",
        "gathered": "gathered, MiB", "sent": "sent, MiB",
        **{part: f"{name}, ms" for part, name in PARTS.items()}, "step": "step, ms",
        "speed": "clips/s, at most", "weak": "weak, 256 to 1", "strong": "strong, 256 to 1",
    }  # fmt: skip
    text = (
        f"Steps of 256 clips of 243 frames on 256 chips, mesh `{MESH}`, per chip, JAX "
        f"{versions['jax']}, libtpu {versions['libtpu']}. Memory and messages are the compiler's, "
        "times are estimates.\n\n" + table(rows, columns) + "\n\n" + "\n".join(sentences)
    )
    text = "\n\n".join([text, *filter(None, tables)])
    (RESULTS / "scaling_study.md").write_text(text + "\n")
    before, _, rest = PAGE.read_text().partition(MARKS[0])
    shown = f"{text}\n\n" + "\n".join(pictures)
    PAGE.write_text(f"{before}{MARKS[0]}\n{shown}\n{MARKS[1]}{rest.partition(MARKS[1])[2]}")
    print(text)


if __name__ == "__main__":
    main()
