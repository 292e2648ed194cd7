"""What surrounds the model: opening the Human3.6M file, drawing clips, the block's convolution.

usage: python benchmarks/around_the_model.py [--rows 2130000] [--repeats 3]

data: a made-up file in the Human3.6M file's format and of its size is converted and opened, each in
a process of its own whose peak memory is the figure. pictures: a clip of 120 frames with keypoints
and ground truth as MP4 at 480 pixels. convolution: the depthwise convolution of a block as shifted
multiply-adds, which the model uses, against XLA's grouped convolution, taking turns; medians.
Writes benchmarks/results/around_the_model.{json,md}.
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import pickle
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax
import jax.numpy as jnp
import numpy as np
from common import environment, medians_in_turn, memory_status, table, write_results
from selective_scan_jax.testing import REFERENCE_BLOCK

from posemamba_jax.data.sources.h36m_cache import open_split
from posemamba_jax.model.layers import DepthwiseConv
from posemamba_jax.pictures.render import render

CAMERAS = ("54138969", "55011271", "58860488", "60457274")
ROWS_PER_RECORDING = 2500


def made_up_split(rows: int, rng: np.random.Generator, test: bool) -> dict:
    """Makes one split in the file's format; coordinates are noise of the right size."""
    recording = np.arange(rows) // ROWS_PER_RECORDING
    names = np.array([f"s_01_act_{n % 15 + 2:02d}_subact_01_ca_{n:04d}" for n in range(2000)])
    split = {
        "joint_2d": rng.uniform(100, 900, (rows, 17, 2)).astype(np.float32),
        "confidence": rng.uniform(0, 1, (rows, 17, 1)).astype(np.float32),
        "joint3d_image": rng.uniform(100, 900, (rows, 17, 3)).astype(np.float32),
        "camera_name": np.array(CAMERAS)[recording % 4],
        "source": names[recording],
    }
    if test:
        split["action"] = np.array(["Walking", "Sitting", "Eating"])[recording % 3]
        split["2.5d_factor"] = rng.uniform(3, 5, rows)
        split["joints_2.5d_image"] = rng.uniform(-900, 900, (rows, 17, 3)).astype(np.float32)
    return split


def open_and_report(path: str) -> None:
    """Opens both splits; prints seconds and peak memory over that of the imports, as JSON."""
    before, start = memory_status("VmRSS"), time.perf_counter()
    for split in ("train", "test"):
        open_split(path, split)
    seconds, peak = time.perf_counter() - start, memory_status("VmHWM") - before
    print(json.dumps({"seconds": round(seconds, 2), "peak_MB": round(peak / 1e6)}))


def measure_data(rows: int) -> dict:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "h36m.pkl"
        rng = np.random.default_rng(0)
        content = {
            "train": made_up_split(rows * 3 // 4, rng, False),
            "test": made_up_split(rows - rows * 3 // 4, rng, True),
        }
        with path.open("wb") as file:
            pickle.dump(content, file, protocol=4)
        del content
        found = {"rows": rows, "file_MB": round(path.stat().st_size / 1e6)}
        for name in ("convert", "open"):
            command = [sys.executable, __file__, "--open", str(path)]
            done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
            found[name] = json.loads(done.stdout.splitlines()[-1])
    return found


def measure_pictures(repeats: int) -> dict:
    frames, rng = 120, np.random.default_rng(0)
    base = rng.normal(0, 300, (1, 17, 3))
    poses = base + rng.normal(0, 100, (frames, 17, 3)).cumsum(0) * 0.05
    seconds = []
    with tempfile.TemporaryDirectory() as folder:
        for _ in range(repeats):
            start = time.perf_counter()
            render(
                Path(folder) / "clip.mp4",
                poses,
                poses_2d=poses[..., :2] * 0.3 + 500,
                ground_truth=poses + 20,
                image_size=(1000, 1000),
                fps=50,
                progress=False,
            )
            seconds.append(time.perf_counter() - start)
    return {"frames": frames, "frames_per_second": round(frames / statistics.median(seconds))}


def grouped_convolution(variables, x):
    kernel, bias = variables["params"]["kernel"], variables["params"]["bias"]
    y = jax.lax.conv_general_dilated(
        x,
        kernel[:, :, None],
        (1, 1),
        "SAME",
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=x.shape[-1],
    )
    return y + bias


def measure_convolution(repeats: int) -> dict:
    x = jax.random.normal(jax.random.key(0), REFERENCE_BLOCK.operand_shapes().x)
    conv = DepthwiseConv()
    variables = conv.init(jax.random.key(1), x)
    np.testing.assert_allclose(
        conv.apply(variables, x), grouped_convolution(variables, x), atol=1e-5
    )
    runs = {}
    for name, apply in (("shifted", conv.apply), ("grouped", grouped_convolution)):
        backward = jax.grad(lambda v, x, apply=apply: jnp.sum(apply(v, x) ** 2), (0, 1))
        for part, function in (("forward", apply), ("forward_backward", backward)):
            runs[name, part] = functools.partial(jax.jit(function), variables, x)
    medians = medians_in_turn(runs, repeats)
    return {
        part: {
            "shifted_ms": round(1e3 * medians["shifted", part], 2),
            "grouped_ms": round(1e3 * medians["grouped", part], 2),
            "ratio": round(medians["grouped", part] / medians["shifted", part], 1),
        }
        for part in ("forward", "forward_backward")
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rows", type=int, default=2_130_000, help="of the made-up file")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--open", metavar="PATH", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.open:
        open_and_report(options.open)
        return
    data = measure_data(options.rows)
    pictures = measure_pictures(options.repeats)
    convolution = measure_convolution(options.repeats)
    rows = [
        {"what": f"Human3.6M file, {data['file_MB']} MB: {name}", "figure": figure}
        for name in ("convert", "open")
        for figure in [f"{data[name]['seconds']} s, {data[name]['peak_MB']} MB at its peak"]
    ]
    rows.append({"what": "MP4, 480 pixels", "figure": f"{pictures['frames_per_second']} frames/s"})
    rows += [
        {
            "what": f"depthwise convolution, {part.replace('_', ' and ')}",
            "figure": f"{found['shifted_ms']} ms, grouped {found['grouped_ms']} ms "
            f"({found['ratio']} times)",
        }
        for part, found in convolution.items()
    ]
    machine = environment("jax", "numpy", "matplotlib", "imageio-ffmpeg")
    title = f"`python benchmarks/around_the_model.py`, {machine['date']}, {machine['cpu']}"
    write_results(
        "around_the_model",
        {
            "environment": machine,
            "data": data,
            "pictures": pictures,
            "convolution": convolution,
        },
        f"{title}\n\n" + table(rows, {"what": "what", "figure": "figure"}),
    )


if __name__ == "__main__":
    main()
