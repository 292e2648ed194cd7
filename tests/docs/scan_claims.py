"""What README and pages must say of the scans' kernels.

Each function yields the text that its page must hold, from the results of one file.
"""

import statistics

from claims import pick, span


def seconds(value):
    return f"{value:.3f} s" if value < 10 else f"{value:.1f} s"


def readme_selective_scan(r):
    labels = {
        "cpu": "if there is a C++ compiler)",
        "xla": "| this package, XLA",
        "torch_chunked": "| PyTorch, in chunks (cumulative sums)",
        "torch_steps": "| PyTorch, step by step",
        "mambapy": "| mambapy, parallel scan",
    }
    for name, label in labels.items():
        row = pick(r["rows"], name=name)
        both, peak = seconds(row["both_seconds"]), row["both_peak_mib"]
        yield f"{label} | {seconds(row['forward_seconds'])} | {both} | {peak} MiB |"
    exps = pick(r["rows"], name="exps")["forward_seconds"]
    yield f"The exponentials alone take XLA {exps:.3f} s"


def cpu_page_selective_scan(r):
    torch, cpu = (pick(r["rows"], name=name) for name in ("torch_chunked", "cpu"))
    forward, both = (torch[k] / cpu[k] for k in ("forward_seconds", "both_seconds"))
    yield f"`selective_scan` forward is {forward:.0f} times and forward with gradients"
    yield f"forward with gradients {both:.0f} times as fast as a chunked scan"


def cpu_page_step(r):
    row, parts = pick(r["results"], model="S"), r["profile_ms"]

    def share(*names):
        """Percent of all time before."""
        return [
            100 * sum(parts[tree][name] for name in names) / sum(parts["before"].values())
            for tree in ("before", "now")
        ]

    yield f"is {row['step_s_ratio']:.1f} times as fast as before these changes"
    yield f"with {row['step_processor_s_ratio']:.1f} times less processor time"
    yield f"the forward pass {row['forward_s_ratio']:.1f} times"
    before, now = share("convolution, SiLU, GELU", "norms", "layers, native")
    yield f"activations and norms took {before:.0f} % and take {now:.0f} % now"
    before, now = share("transposed copies")
    yield f"transposed copies {before:.0f} % and {now:.0f} %"
    before, now = share("arrays over depths")
    yield f"arrays over depths {before:.0f} % and {now:.0f} %"
    yield f"the scan took {share('scan, native')[0]:.0f} %"


def readme_cross_scan(r):
    def ms(name, digits=0):
        row = pick(r["rows"], name=name)
        forward = f"{row['forward_seconds'] * 1000:.{digits}f}"
        return forward, f"{row['both_seconds'] * 1000:.0f}"

    forward, both = ms("cross_cpu", 1)
    yield f"takes {forward} ms ({both} with gradients) on the native kernel"
    yield "and {} ({}) by XLA".format(*ms("cross_xla"))
    yield "PyTorch with the directions stacked takes {} ({})".format(*ms("torch_chunked"))
    cpu, xla = (
        pick(r["rows"], name=name)["forward_seconds"] for name in ("model_cpu", "model_xla")
    )
    yield f"one clip takes {cpu:.2f} s natively, {xla:.1f} s by XLA"


def readme_cpu_kernel(r):
    ratios = [row["ratio"] for row in r["model"] if row["what"].endswith("forward")]
    step = pick(r["model"], what="quickstart training step")["ratio"]
    yield f"Whole models run {span(ratios)} times as fast on the native kernel"
    yield f"a training step of the quickstart's model, on clips of 27 frames, {step:.1f} times"


def cpu_page_cross_scan(r):
    for label, name in (("native", "cross_cpu"), ("XLA", "cross_xla")):
        row = pick(r["rows"], name=name)
        forward, both = (row[key] * 1000 for key in ("forward_seconds", "both_seconds"))
        yield f"| {label} | {forward:.1f} ms | {both:.1f} ms |"


def cpu_page_kernel(r):
    def row(name, threads):
        return pick(r["kernel"], operation="cross_scan", name=name, threads=threads)

    one, two, xla = row("cpu avx512", 1), row("cpu avx512", 2), row("xla", "all")
    yield f"ms | {two['both_temporary_mib']:.1f} MiB |"
    yield f"ms | {xla['both_temporary_mib']:.1f} MiB |"
    ratios = [one[key] / two[key] for key in ("forward_ms", "both_ms")]
    yield f"Two threads are {span(ratios)} times as fast as one"
    floors = {(row["level"], row["loop"]): row for row in r["roofline"]}
    over = [floors[level, "backward"] for level in ("avx512", "avx2")]
    over = [row["measured_ms"] / row["floor_ms"] for row in over]
    yield "about {:.1f} times its floor with AVX-512 and {:.1f} times with AVX2".format(*over)


def tpu_schedule(r, chip, channels):
    """Spans of bundles in the loops and in whole visits, of the forward and the backward kernel."""
    rows = [row for row in r["schedule"] if (row["chip"], row["channels"]) == (chip, channels)]
    for kernel in ("forward", "backward"):
        mine = [row for row in rows if row["kernel"] == kernel]
        loops = [[row[n] for n in ("recurrence", "adjoint") if row.get(n)] for row in mine]
        yield span([sum(n["per_step_and_register"] for n in names) for names in loops])
        yield span([row["visit_per_step_and_register"] for row in mine])


def readme_tpu(r):
    loops, visits, loops_back, visits_back = tpu_schedule(r, "v5e", 256)
    yield f"256 channels: loops over time | {loops} | {loops_back} |"
    yield f"the same, all that the kernel does | {visits} | {visits_back} |"
    _, visits, _, visits_back = tpu_schedule(r, "v5e", 128)
    yield f"the same with 128 channels, as in S | {visits} | {visits_back} |"


def tpu_page(r):
    for channels in (256, 128):
        loops, visits, loops_back, visits_back = tpu_schedule(r, "v5e", channels)
        _, v6e, _, v6e_back = tpu_schedule(r, "v6e", channels)
        yield f"| forward | {channels} | {loops} | {visits} | {v6e} |"
        yield f"| backward | {channels} | {loops_back} | {visits_back} | {v6e_back} |"
    memory = {(row["pass"], row["route"]): row["temporary_MB"] for row in r["memory"]}
    for name, text in (("forward", "forward"), ("forward and gradients", "with gradients")):
        fused, stacked = (memory[name, route] for route in ("cross_scan", "stacked directions"))
        yield f"{fused:.0f} MB against {stacked:.0f} MB {text}"


def triton_page(r):
    for row in r["kernels"]:
        cycles = ", ".join(f"{c:.0f}" for c in row["cycles"])
        names = ("family", "kernel", "states", "group", "registers", "spilled")
        yield f"| {' | '.join(str(row[name]) for name in names)} | {cycles} |"
    for row in r["times"]:
        yield f"| {' | '.join(map(str, row.values()))} |"


def _mosaic_loop(r, operator, kernel, loop):
    return [
        row["per state"]
        for row in r["loops"]
        if (row["operator"], row["kernel"], row["loop"]) == (operator, kernel, loop)
    ]


def readme_mosaic_gpu(r):
    (forward,) = _mosaic_loop(r, "selective_scan", "forward_scan", "recurrence")
    (states,), (gradients,) = (
        _mosaic_loop(r, "selective_scan", "backward_scan", loop)
        for loop in ("recurrence", "gradients")
    )
    yield f"| {forward:.1f} | {states + gradients:.0f} |"


def mosaic_gpu_page(r):
    rows = {
        "forward, states at the ends of parts": ("forward_ends", "recurrence"),
        "forward, scan": ("forward_scan", "recurrence"),
        "backward, adjoints at the starts of parts": ("backward_ends", "recurrence"),
        "backward, states at the starts of chunks": ("backward_scan", "recurrence"),
        "backward, gradients": ("backward_scan", "gradients"),
    }
    for label, which in rows.items():
        selective, cross = (
            span(_mosaic_loop(r, operator, *which)) for operator in ("selective_scan", "cross_scan")
        )
        yield f"| {label} | {selective} | {cross} |"
    for row in r["times"]:
        passes = (row[f"{name} ms"] for p in ("forward", "backward") for name in (p, f"triton {p}"))
        yield f"| {row['scan']} | {row['batch']} | " + " | ".join(map(str, passes)) + " |"
    yield f"Triton {(1 / speed_over_triton(r) - 1) * 100:.0f} % faster"


def speed_over_triton(r):
    """How much faster Mosaic GPU's kernels model with gradients, over all scans and batches."""
    ratios = [
        (row["triton forward ms"] + row["triton backward ms"])
        / (row["forward ms"] + row["backward ms"])
        for row in r["times"]
    ]
    return statistics.geometric_mean(ratios)


def readme_memory(r):
    def shares(device, implementation):
        fused, stacked = (
            pick(r["rows"], device=device, implementation=implementation, route=route)
            for route in ("cross_scan", "everything stacked")
        )
        keys = ("forward_mib", "both_mib")
        return [f"{fused[key] / stacked[key] * 100:.0f} %" for key in keys]

    forward, gradients = shares("TPU v5 lite", "mosaic_tpu")
    yield f"takes {forward} of the temporary memory"
    yield f"on a TPU ({gradients} with gradients)"
    yield "{} ({}) by XLA on a CPU".format(*shares("cpu", "xla"))
    native, native_gradients = shares("cpu", "cpu")
    assert native == "0 %"
    yield f"on the native CPU kernel none ({native_gradients})"
