"""How long the training step takes to compile: depths as one loop or unrolled, and from the cache.

usage: python benchmarks/compile_time.py [--models S,L] [--topology v5e:1x1] [--implementation NAME]

Each figure is one compilation in this process with all of JAX's caches emptied before it. "Traced"
is Python's time to make the program, "compiled" XLA's; processor time is that of both on all cores,
which other programs disturb less. The cache is the one that train.py keeps on
disk: cold writes it, warm reads it, both in full through `jax.jit(...).lower().compile()`.
Writes benchmarks/results/compile_time_PLATFORM.{json,md}.
"""

import argparse
import tempfile
import time

import jax
from common import environment, table, write_results
from jax.experimental.compilation_cache import compilation_cache
from selective_scan_jax.target import lowering_for, target_of

from posemamba_jax.config import load_config
from posemamba_jax.model.mesh import make_mesh
from posemamba_jax.scaling.chips import parse_topology
from posemamba_jax.scaling.compiled import topology_devices
from posemamba_jax.training.state import abstract_state
from posemamba_jax.training.step import abstract_batch, make_train_step


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


def measure(preset: str, devices, options: list[str]) -> dict:
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


def as_markdown(rows: list[dict], setting: dict) -> str:
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", default="S,B,L")
    parser.add_argument("--topology", help="compile for one chip of it instead of what is here")
    parser.add_argument("--implementation", help="of the scan")
    args = parser.parse_args()
    use_cache(None)
    devices = jax.devices()[:1]
    if args.topology:
        devices = topology_devices(parse_topology(args.topology))[:1]
    options = [f"--model.implementation={args.implementation}"] if args.implementation else []
    rows = [measure(preset, devices, options) for preset in args.models.split(",")]
    setting = environment("jax", "jaxlib", "libtpu") | {"target": devices[0].device_kind}
    name = args.topology.split(":")[0] if args.topology else devices[0].platform
    write_results(
        f"compile_time_{name}",
        {"setting": setting, "results": rows},
        as_markdown(rows, setting),
    )


if __name__ == "__main__":
    main()
