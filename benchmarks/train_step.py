"""Training as train.py does it: clips per second, utilisation, how long the host is waited for.

usage: python benchmarks/train_step.py [--models S,B,L] [--batch 1] [--frames 243] [--steps 5]

Runs the compiled step on generated clips, read by the input pipeline and placed ahead on the
device, without fetching anything from the device in between. The utilisation is that of the model's
multiply-adds in three passes (see `python -m posemamba_jax.model`), two FLOPs each, over the peak:
the vendor's for accelerators in the table below, else the fastest of a few float32 matrix products
on this machine. Writes benchmarks/results/train_step_PLATFORM.{json,md}.
"""

import argparse
import time

import jax
import jax.numpy as jnp
from common import environment, memory_status, table, write_results

from posemamba_jax import data
from posemamba_jax.config import load_config
from posemamba_jax.data import pipeline
from posemamba_jax.data.prefetch import DevicePrefetch
from posemamba_jax.model.mesh import make_mesh
from posemamba_jax.model.summary import layer_costs, totals
from posemamba_jax.scaling.chips import CHIPS
from posemamba_jax.training.state import abstract_state, make_state
from posemamba_jax.training.step import abstract_batch, make_train_step, put_batch

# Dense bfloat16 FLOP/s by `jax.Device.device_kind`; NVIDIA's are from its data sheets.
VENDOR_PEAK = {
    "TPU v4": CHIPS["v4"].bf16_flops / 2,  # A device is half a chip.
    "TPU v5 lite": CHIPS["v5e"].bf16_flops,
    "TPU v5": CHIPS["v5p"].bf16_flops,
    "TPU v6 lite": CHIPS["v6e"].bf16_flops,
    "NVIDIA H100 80GB HBM3": 989.4e12,
    "NVIDIA H200": 989.4e12,
    "NVIDIA A100-SXM4-40GB": 312e12,
    "NVIDIA A100-SXM4-80GB": 312e12,
}


def peak_flops(device) -> tuple[float, str]:
    """Returns (FLOP/s, where the figure comes from)."""
    if device.device_kind in VENDOR_PEAK:
        return VENDOR_PEAK[device.device_kind], f"{device.device_kind}, bfloat16, vendor's figure"
    best, size = 0.0, 2048
    x = jax.random.normal(jax.random.key(0), (size, size), jnp.float32)
    multiply = jax.jit(jnp.dot)
    multiply(x, x).block_until_ready()
    for _ in range(8):
        start = time.perf_counter()
        multiply(x, x).block_until_ready()
        best = max(best, 2 * size**3 / (time.perf_counter() - start))
    return best, f"float32 product of {size} x {size} matrices, fastest of 8, measured"


def measure(preset: str, args: argparse.Namespace, peak: float) -> dict:
    """Returns one model on all devices."""
    config = load_config(
        [
            f"--model.preset={preset}",
            "--data.source=synthetic",
            f"--data.clip_len={args.frames}",
            f"--data.synthetic.num_train_clips={max(16, args.batch)}",
            f"--train.batch_size={args.batch}",
            *args.options,
        ]
    )
    mesh = make_mesh(config.mesh)
    source = data.build(config.data, "train")
    keys = pipeline.batch_keys(source)
    start = time.perf_counter()
    step = (
        make_train_step(config, mesh, steps_per_epoch=1000, total_steps=100_000)
        .lower(abstract_state(config, mesh), abstract_batch(config, mesh, keys))
        .compile()
    )
    compiled = time.perf_counter() - start
    batches = pipeline.train_batches(source, batch_size=args.batch, seed=0)
    state = make_state(config, mesh)
    with DevicePrefetch(batches, lambda batch: put_batch(batch, mesh)) as feed:
        state, metrics = step(state, next(feed))
        jax.block_until_ready(metrics)
        waited, start = feed.waited, time.perf_counter()
        for _ in range(args.steps):
            state, metrics = step(state, next(feed))
        jax.block_until_ready(metrics)
        seconds = time.perf_counter() - start
        waited = feed.waited - waited
    flops = 3 * 2 * totals(layer_costs(config.model, args.frames))[1] * args.batch
    achieved = flops * args.steps / seconds
    row = {
        "model": preset,
        "batch": args.batch,
        "frames": args.frames,
        "steps": args.steps,
        "compile_s": compiled,
        "step_s": seconds / args.steps,
        "clips_per_second": args.batch * args.steps / seconds,
        "model_gflop_per_clip": flops / args.batch / 1e9,
        "achieved_gflops": achieved / 1e9,
        "model_flop_utilisation": achieved / (peak * mesh.devices.size),
        "host_wait_share": waited / seconds,
        "loss": float(metrics["loss"]),
        "peak_memory_gib": memory_status("VmHWM") / 2**30,
    }
    print({k: round(v, 4) if isinstance(v, float) else v for k, v in row.items()}, flush=True)
    return row


def as_markdown(rows: list[dict], setting: dict) -> str:
    shown = [
        {
            **row,
            "step": f"{row['step_s']:.3g}",
            "speed": f"{row['clips_per_second']:.3g}",
            "flops": f"{row['achieved_gflops']:,.0f}",
            "mfu": f"{row['model_flop_utilisation']:.0%}",
            "wait": f"{row['host_wait_share']:.1%}",
        }
        for row in rows
    ]
    columns = {
        "model": "model", "batch": "clips in a batch", "step": "s per step",
        "speed": "clips per second", "flops": "model GFLOP/s", "mfu": "of the peak",
        "wait": "waiting for batches",
    }  # fmt: skip
    return "\n".join(
        (
            f"Training steps on clips of {rows[0]['frames']} frames, float32 unless set otherwise, "
            f"on {setting['devices']} x {setting['device']} ({setting['cpu']}, {setting['cores']} "
            f"cores), JAX {setting['jax']}, {setting['date']}, commit {setting['commit']}. Peak: "
            f"{setting['peak_flops'] / 1e9:,.0f} GFLOP/s ({setting['peak_source']}).",
            "",
            table(shown, columns),
        )
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0],
        epilog="Other options are keys of the configuration: --model.dtype=bfloat16.",
    )
    parser.add_argument("--models", default="S,B,L")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--frames", type=int, default=243)
    parser.add_argument("--steps", type=int, default=5)
    args, args.options = parser.parse_known_args()
    device = jax.devices()[0]
    peak, source = peak_flops(device)
    setting = environment("jax", "jaxlib", "flax") | {
        "device": device.device_kind,
        "devices": len(jax.devices()),
        "peak_flops": peak,
        "peak_source": source,
        "options": args.options,
    }
    rows = [measure(preset, args, peak) for preset in args.models.split(",")]
    write_results(
        f"train_step_{device.platform}",
        {"setting": setting, "results": rows},
        as_markdown(rows, setting),
    )


if __name__ == "__main__":
    main()
