"""The training step: how fast train.py takes it, and how long it takes to compile.

usage: python benchmarks/train_step.py speed [--models S,B,L] [--batch 1] [--frames 243] [--steps 5]
       python benchmarks/train_step.py compile [--models S,L] [--topology v5e:1x1]
                                               [--implementation NAME]

speed: clips per second, utilisation, how long the host is waited for. Runs the compiled step on
generated clips, read by the input pipeline and placed ahead on the device, without fetching
anything from the device in between. The utilisation is that of the model's multiply-adds in three
passes (see `python -m posemamba_jax.model`), two FLOPs each, over the peak: the vendor's for
accelerators in the table below, else the fastest of a few float32 matrix products on this machine.
Other options are keys of the configuration: --model.dtype=bfloat16. Writes
benchmarks/results/train_step_PLATFORM.{json,md}.

compile: depths as one loop or unrolled, and from the cache. Each figure is one compilation in this
process with all of JAX's caches emptied before it. "Traced" is Python's time to make the program,
"compiled" XLA's; processor time is that of both on all cores, which other programs disturb less.
The cache is the one that train.py keeps on disk: cold writes it, warm reads it, both in full
through `jax.jit(...).lower().compile()`. Writes benchmarks/results/compile_time_PLATFORM.{json,md}.
"""

import argparse
import tempfile
import time

import jax
import jax.numpy as jnp
from common import environment, memory_status, table, training_config, write_results
from jax.experimental.compilation_cache import compilation_cache
from selective_scan_jax.target import lowering_for, target_of

from posemamba_jax import data
from posemamba_jax.config import load_config
from posemamba_jax.data import pipeline
from posemamba_jax.data.prefetch import DevicePrefetch
from posemamba_jax.model.mesh import make_mesh
from posemamba_jax.model.summary import layer_costs, totals
from posemamba_jax.scaling.chips import CHIPS, parse_topology
from posemamba_jax.scaling.compiled import topology_devices
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


def measure_speed(preset: str, args: argparse.Namespace, peak: float) -> dict:
    """Measures the steps of one model on all devices."""
    clips = max(16, args.batch)
    config = training_config(preset, args.frames, *args.options, clips=clips, batch=args.batch)
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


def speed_markdown(rows: list[dict], setting: dict) -> str:
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


def speed_study(args) -> None:
    """Writes the results of `speed`."""
    device = jax.devices()[0]
    peak, source = peak_flops(device)
    setting = environment("jax", "jaxlib", "flax") | {
        "device": device.device_kind,
        "devices": len(jax.devices()),
        "peak_flops": peak,
        "peak_source": source,
        "options": args.options,
    }
    rows = [measure_speed(preset, args, peak) for preset in args.models.split(",")]
    write_results(
        f"train_step_{device.platform}",
        {"setting": setting, "results": rows},
        speed_markdown(rows, setting),
    )


def compile_once(config, devices) -> dict[str, float]:
    """Returns seconds to trace and to compile the training step."""
    jax.clear_caches()
    before = time.process_time()
    mesh = make_mesh(config.mesh, devices)
    with lowering_for(target_of(devices[0])):
        start = time.perf_counter()
        lowered = make_train_step(config, mesh, steps_per_epoch=1000, total_steps=100_000).lower(
            abstract_state(config, mesh), abstract_batch(config, mesh)
        )
        traced = time.perf_counter()
    lowered.compile()
    return {
        "traced_s": traced - start,
        "compiled_s": time.perf_counter() - traced,
        "total_s": time.perf_counter() - start,
        "processor_s": time.process_time() - before,
    }


def measure_compiling(preset: str, devices, options: list[str]) -> dict:
    """Returns scanned and unrolled without a cache, then scanned with a cold and a warm one."""
    make = [f"--config=configs/h36m/posemamba_{preset.lower()}.yaml", "--train.batch_size=1"]
    row: dict = {"model": preset}

    def take(name: str, scanned: bool) -> None:
        config = load_config([*make, *options, f"--model.scan_layers={str(scanned).lower()}"])
        row[name] = compile_once(config, devices)
        print(preset, name, {k: round(v, 1) for k, v in row[name].items()}, flush=True)

    take("scanned", True)
    take("unrolled", False)
    row["scanned_over_unrolled"] = row["scanned"]["total_s"] / row["unrolled"]["total_s"]
    with tempfile.TemporaryDirectory() as folder:
        use_cache(folder)
        take("cache_cold", True)
        take("cache_warm", True)
        use_cache(None)
    return row


def use_cache(folder: str | None) -> None:
    jax.config.update("jax_compilation_cache_dir", folder)
    compilation_cache.reset_cache()


def compile_markdown(rows: list[dict], setting: dict) -> str:
    shown = []
    for row in rows:
        seconds = {
            name: "{traced_s:.1f} + {compiled_s:.1f} ({processor_s:.0f})".format(**row[name])
            for name in ("scanned", "unrolled", "cache_cold", "cache_warm")
        }
        shown.append({**row, **seconds, "share": f"{row['scanned_over_unrolled']:.0%}"})
    columns = {
        "model": "model", "scanned": "one loop over depths", "unrolled": "unrolled",
        "share": "loop / unrolled", "cache_cold": "loop, cold cache",
        "cache_warm": "loop, warm cache",
    }  # fmt: skip
    return "\n".join(
        (
            f"Seconds to trace + compile the training step (processor seconds), one clip of 243 "
            f"frames, for {setting['target']}, on {setting['cpu']}, {setting['cores']} cores, JAX "
            f"{setting['jax']}, {setting['date']}, commit {setting['commit']}.",
            "",
            table(shown, columns),
        )
    )


def compile_study(args) -> None:
    """Writes the results of `compile`."""
    use_cache(None)
    devices = jax.devices()[:1]
    if args.topology:
        devices = topology_devices(parse_topology(args.topology))[:1]
    options = [f"--model.implementation={args.implementation}"] if args.implementation else []
    rows = [measure_compiling(preset, devices, options) for preset in args.models.split(",")]
    setting = environment("jax", "jaxlib", "libtpu") | {"target": devices[0].device_kind}
    name = args.topology.split(":")[0] if args.topology else devices[0].platform
    write_results(
        f"compile_time_{name}",
        {"setting": setting, "results": rows},
        compile_markdown(rows, setting),
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    studies = parser.add_subparsers(required=True)
    one = studies.add_parser("speed")
    one.add_argument("--batch", type=int, default=1)
    one.add_argument("--frames", type=int, default=243)
    one.add_argument("--steps", type=int, default=5)
    one.set_defaults(run=speed_study)
    other = studies.add_parser("compile")
    other.add_argument("--topology", help="compile for one chip of it instead of what is here")
    other.add_argument("--implementation", help="of the scan")
    other.set_defaults(run=compile_study)
    for study in (one, other):
        study.add_argument("--models", default="S,B,L")
    args, args.options = parser.parse_known_args()
    if args.options and args.run is compile_study:
        parser.error(f"unknown arguments: {' '.join(args.options)}")
    args.run(args)


if __name__ == "__main__":
    main()
