"""Figures in the README and the pages are those of the results that they came from.

Each entry of CLAIMS makes, from a file in benchmarks/results, the text that a page must hold. A
figure that is measured anew, or edited by hand, fails here until page and file agree.
"""

import json
import re

import pytest
import scan_claims
from claims import pick, span
from markdown_pages import ROOT
from selective_scan_jax import backends

RESULTS = ROOT / "benchmarks" / "results"
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


# Each function yields the text that its page must hold, from the results of one file.


def readme_quickstart(r):
    base = r["baselines"]
    yield f"took {r['wall_seconds_already_installed'] / 60:.1f} minutes on two cores"
    yield f"the model ended at {r['final']['mpjpe_mm']:.1f} mm (P1)"
    yield f"the mean pose is at {base['mean pose']['mpjpe_mm']:.1f} mm"
    yield f"linear regression at {base['linear regression']['mpjpe_mm']:.1f}"


def readme_cmu(r):
    rows = {"mean pose of the training set": r["baselines"]["mean pose"]}
    rows["linear regression, frame by frame"] = r["baselines"]["linear regression"]
    rows |= {f"epoch {row['epoch']:.0f}": row for row in r["epochs"]}
    for name, row in rows.items():
        figures = (row[key] for key in ("mpjpe_mm", "p_mpjpe_mm", "mpjve_mm"))
        yield f"{name} | " + " | ".join(f"{x:.1f}" for x in figures) + " |"
    assert r["final"]["mpjpe_mm"] == r["epochs"][-1]["mpjpe_mm"]


def readme_predict(r):
    for row in r["results"]:
        if row["batch"] == 1:
            keys = ("end_to_end", "end_to_end_no_flip", "model_only")
            yield f"| {row['model']} | " + " | ".join(f"{row[key]:.0f}" for key in keys) + " |"


def prediction_page(r):
    for row in r["results"]:
        keys = ("model_only", "end_to_end", "end_to_end_no_flip")
        figures = " | ".join(f"{row[key]:.0f}" for key in keys)
        yield f"| {row['model']} | {row['batch']} | {figures} |"


def readme_compile_time(r):
    row = pick(r["results"], model="L")
    scanned, unrolled = row["scanned"]["total_s"], row["unrolled"]["total_s"]
    yield f"compiles in {scanned:.0f} s as a loop over depths, in {unrolled:.0f} s unrolled"


def scaling_page_compile_time(r):
    row = pick(r["results"], model="L")
    scanned, unrolled = row["scanned"]["total_s"], row["unrolled"]["total_s"]
    cold, warm = row["cache_cold"]["total_s"], row["cache_warm"]["total_s"]
    yield f"{scanned:.1f} s as one loop and {unrolled:.1f} s unrolled"
    yield f"{cold:.1f} s when it was written and {warm:.1f} s when it was read"


def recovery_checkpoint(r):
    rows = r["rows"]
    waits, worst = [row["blocked_s"] for row in rows], max(row["blocked_worst_s"] for row in rows)
    yield f"it waits {span(waits, 2)} s (median; worst {worst:.2f} s)"
    yield f"{span([row['blocked_while_writing_s'] for row in rows], 2)} s if the last save"
    small, large = (pick(rows, preset=preset)["written_s"] for preset in "SL")
    yield f"on disk {small:.2f} s (S) to {large:.2f} s (L) later"


def recovery_stop(r):
    by_signal = [pick(r["rows"], signal=signal)["median_s"] for signal in ("SIGTERM", "SIGINT")]
    yield "takes {:.1f} and {:.1f} s".format(*by_signal)


def data_page(r):
    data = r["data"]
    yield f"({data['file_MB'] / 1000:.1f} GB, {data['rows'] / 1e6:.2f} million frames)"
    convert = data["convert"]
    yield f"took {convert['seconds']:.1f} seconds and {convert['peak_MB'] / 1000:.1f} GB"


def rendering_page(r):
    yield f"at {r['pictures']['frames_per_second']} frames per second"


def scaling_page_study(text):
    yield from filter(None, map(plain, text.splitlines()))


def scaling_page_training(r):
    worst = max(row["host_wait_share"] for row in r["results"])
    yield f"the wait was {worst * 100:.1f} % of a step or less"


def model_card(r):
    keys = ("mpjpe_mm", "p_mpjpe_mm", "n_mpjpe_mm", "mpjve_mm", "acceleration_mm")
    for row in r["rows"]:
        figures = row["figures"]
        cells = [f"{figures['all'][key]:.1f}" for key in keys]
        cells += [f"{kind['mpjpe_mm']:.1f}" for name, kind in figures.items() if name != "all"]
        yield f"| {row['name']} | {' | '.join(cells)} |"
    clips = " and ".join(f"{r['batch_size'] * steps:,}" for steps in r["steps"].values())
    yield f"trained at the same time for {r['baseline_minutes']:g} minutes, on {clips} clips"


def card_training(results):
    r = results["training"]
    clips = r["steps"] * r["batch_size"]
    yield f"{r['parameters']:,} parameters, {r['steps']:,} steps of {r['batch_size']} clips of "
    yield f"of {r['frames']} frames, {clips:,} clips in all"
    yield f"took {r['minutes']:.0f} minutes on two busy cores"

    practice = results["practice"]
    alone, shipped = (practice[key]["mpjpe_mm"] for key in ("no_flip_averaging", "as_shipped"))
    yield f"{alone:.1f} mm (P1) to {shipped:.1f}; the running average"
    yield f"({practice['last_parameters']['mpjpe_mm']:.1f} without)"


def mocap_page(results):
    r = results["confidence"]
    given, withheld = r["with"], r["withheld"]
    yield f"after {r['steps'] * r['batch_size']:,} further clips"
    subjects = "mm on the held-out subjects"
    yield f"at {given['mpjpe_mm']:.1f} {subjects} (P1; {given['p_mpjpe_mm']:.1f} P2)"
    yield f"at {withheld['mpjpe_mm']:.1f} ({withheld['p_mpjpe_mm']:.1f}) when"
    earlier, training = results["earlier"]["rows"], results["training"]
    for row in [*earlier, *training["course"]]:
        yield f"{row['clips']:,}"
        yield f"| {row['mpjpe_mm']:.1f} | {row['p_mpjpe_mm']:.1f} |"
    r = results["fine_tuning"]
    before, after = r["before"], r["after"]
    yield f"{before['recordings']} recordings of {before['frames']:,} frames are "
    yield f"{before['mpjpe_mm']:.1f} mm off (P1; {before['p_mpjpe_mm']:.1f} P2)"
    clips = r["steps"] * r["batch_size"]
    yield f"these {clips:,} clips, "
    yield f"{after['mpjpe_mm']:.1f} mm ({after['p_mpjpe_mm']:.1f})"


def mocap_page_detector(r):
    sigmas = r["sigma_of_joints"].values()
    yield f"it is by a constant {r['constant']:.3f} of the person's extent"
    yield f"a standard deviation of {r['sigma']:.3f} in x and y ({min(sigmas):.3f} for the belly"
    yield f"to {max(sigmas):.3f} for a wrist)"
    after = list(r["correlation_after_ms"].items())
    *first, last = (f"{value:.2f}" for _, value in after)
    *earlier, latest = (ms for ms, _ in after)
    yield f"{', '.join(first)} and {last} after {', '.join(earlier)} and {latest} ms"
    low, _, high, highest = r["visibility"]
    most, least = (f"({100 * row['share']:.0f} %" for row in (highest, low))
    yield f"{highest['error']:.3f} of the extent where it is above 0.99 {most} of keypoints)"
    yield f"{high['error']:.3f} from 0.6 to 0.99, {low['error']:.3f} below 0.3 {least})"


def world_page(r):
    for row in r["cameras"]:
        yield (
            f"| {row['camera']} | {row['focal_px']:.0f} {row['focal_source']}, "
            f"{row['true_focal_px']:.0f} true | {row['height_m']:.1f}, "
            f"true {row['true_height_m']:.1f} | {row['tilt_degrees']:.0f}, "
            f"true {row['true_tilt_degrees']:.0f} | {row['roll_degrees']:.0f}, "
            f"true {row['true_roll_degrees']:.0f} |"
        )


def card_real_video(r):
    for row in r["rows"]:
        keys = ("p_mpjpe_mm", "p_mpjpe_body_mm", "n_mpjpe_mm", "acceleration_mm")
        yield f"{row['name']} | " + " | ".join(f"{row['mean'][key]:.1f}" for key in keys) + " |"


def other_models_page(r):
    for row in r["models"]:
        times = (
            f"{row[f'{what}_s']:.2f} | {row[f'{what}_frames_per_second']:.0f}"
            for what in ("forward", "training")
        )
        size = f"{row['parameters'] / 1e6:.2f} | {row['published_error_mm']}"
        lifted = f"{row['clips']} x {row['frames_per_clip']}"
        yield f"| {row['model']} | {row['by']} | {size} | {lifted} | {' | '.join(times)} |"
    for row in r["ratios"]:
        names = ("model", "published_error_mm", "instead", "its_published_error_mm")
        figures = [str(row[name]) for name in names]
        figures += [f"{row[f'{what}_ratio']:.1f}" for what in ("forward", "training")]
        yield f"| {' | '.join(figures)} |"


def video_page_detector(r):
    heavy, full, lite = r["models"]
    yield f"are {heavy['put_back_px']:.1f} pixels off on average with `heavy`"
    yield f"{full['as_given_px']:.1f} with `full`"
    yield f"{full['put_back_px']:.1f} once left and right are put back"
    yield f"{lite['put_back_px']:.1f} with `lite`"


def video_page_speed(r):
    engines = {"jax": "JAX", "litert": "`--detector litert`"}
    for row in (row for row in r["results"] if row["cache"] == "kept"):
        stages = " | ".join(f"{row[stage]:.0f}" for stage in ("find", "place", "lift"))
        start = f"{engines[row['detector']]} | {row['model']} | {row['prepare']:.1f}"
        yield f"| {start} | {stages} | {row['all']:.1f} |"


def readme_video(r):
    rate = {(row["detector"], row["model"], row["cache"]): row["all"] for row in r["results"]}
    yield f"an S model lifts {rate['jax', 'heavy', 'kept']:.0f} frames per second with the heavy"
    yield f"detector and {rate['jax', 'full', 'kept']:.0f} with the full one"


def training_steps(r):
    seconds = {row["model"]: row["step_s"] for row in r["results"]}
    yield f"{seconds['S']:.2f} s"
    yield f"{seconds['B']:.2f} s"
    yield f"{seconds['L']:.2f} s"


def scaling_page_kept(r):
    row, narrow = (pick(r["rows"], dtype=dtype) for dtype in ("float32", "bfloat16"))
    yield f"is {row['none, MB']} MB a clip"
    yield f"{row['layers, MB']} MB with `layers`"
    yield f"in bfloat16 (`model.dtype`) it would be {narrow['layers, MB']} MB"


CLAIMS = {
    ("README.md", "quickstart"): readme_quickstart,
    ("README.md", "cmu_01_02"): readme_cmu,
    ("README.md", "predict_cpu"): readme_predict,
    ("README.md", "video_cpu"): readme_video,
    ("README.md", "train_step_cpu"): training_steps,
    ("README.md", "selective_scan_cpu"): scan_claims.readme_selective_scan,
    ("README.md", "cpu_kernel"): scan_claims.readme_cpu_kernel,
    ("README.md", "cross_scan_cpu"): scan_claims.readme_cross_scan,
    ("README.md", "compile_time_cpu"): readme_compile_time,
    ("README.md", "tpu_static"): scan_claims.readme_tpu,
    ("README.md", "mosaic_gpu_static"): scan_claims.readme_mosaic_gpu,
    ("README.md", "scan_memory"): scan_claims.readme_memory,
    ("docs/cpu_kernel.md", "cpu_kernel"): scan_claims.cpu_page_kernel,
    ("docs/cpu_kernel.md", "cross_scan_cpu"): scan_claims.cpu_page_cross_scan,
    ("docs/cpu_kernel.md", "selective_scan_cpu"): scan_claims.cpu_page_selective_scan,
    ("docs/cpu_kernel.md", "train_step_before"): scan_claims.cpu_page_step,
    ("docs/cpu_kernel.md", "train_step_cpu"): training_steps,
    ("docs/data.md", "around_the_model"): data_page,
    ("docs/mocap.md", "cmu30"): mocap_page,
    ("docs/mocap.md", "detector_errors"): mocap_page_detector,
    ("docs/world.md", "rooms"): world_page,
    ("docs/model_card.md", "cmu30"): card_training,
    ("docs/model_card.md", "pretrained"): model_card,
    ("docs/model_card.md", "real_video"): card_real_video,
    ("docs/mosaic_gpu.md", "mosaic_gpu_static"): scan_claims.mosaic_gpu_page,
    ("docs/mosaic_tpu.md", "tpu_static"): scan_claims.tpu_page,
    ("docs/other_models.md", "other_models"): other_models_page,
    ("docs/prediction.md", "predict_cpu"): prediction_page,
    ("docs/recovery.md", "checkpoint"): recovery_checkpoint,
    ("docs/recovery.md", "stop"): recovery_stop,
    ("docs/rendering.md", "around_the_model"): rendering_page,
    ("docs/scaling.md", "compile_time_cpu"): scaling_page_compile_time,
    ("docs/scaling.md", "kept_for_backward"): scaling_page_kept,
    ("docs/scaling.md", "scaling_study"): scaling_page_study,
    ("docs/scaling.md", "train_step_cpu"): scaling_page_training,
    ("docs/triton.md", "gpu_static"): scan_claims.triton_page,
    ("docs/video.md", "detector_agreement"): video_page_detector,
    ("docs/video.md", "video_cpu"): video_page_speed,
}

# Pages that lead to results without giving figures of their own.
WITHOUT_FIGURES = {
    ("docs/selective_scan.md", "cross_scan_cpu"),
    ("docs/selective_scan.md", "scan_memory"),
    ("docs/selective_scan.md", "selective_scan_cpu"),
}


def plain(text):
    """Takes emphasis and line breaks out of a text."""
    return re.sub(r"\s+", " ", text.replace("**", ""))


@pytest.mark.parametrize(("page", "results"), CLAIMS)
def test_page_says_what_was_measured(page, results):
    text = plain((ROOT / page).read_text(encoding="utf-8"))
    source = RESULTS / f"{results}.json"
    if source.exists():
        figures = json.loads(source.read_text(encoding="utf-8"))
    else:
        figures = source.with_suffix(".md").read_text(encoding="utf-8")
    missing = [claim for claim in CLAIMS[page, results](figures) if claim not in text]
    assert not missing, f"{page} does not say what the results have:\n" + "\n".join(missing)


def test_every_page_that_names_results_is_compared_with_them():
    named = {
        (str(page.relative_to(ROOT)), stem)
        for page in PAGES
        for stem in re.findall(
            r"benchmarks/results/(\w+)\.(?:md|json)", page.read_text(encoding="utf-8")
        )
    }
    assert named - WITHOUT_FIGURES == set(CLAIMS)


def test_the_scaling_report_times_kernels_by_what_was_counted():
    counted = json.loads((RESULTS / "tpu_static.json").read_text(encoding="utf-8"))
    table = (ROOT / "posemamba_jax" / "scaling" / "scan_bundles.json").read_text(encoding="utf-8")
    rows = [row for row in counted["schedule"] if "chip" in row]
    for row in rows:
        keys = ("chip", "operator", "kernel", "path", "channels", "states")
        fields = {key: row[key] for key in keys}
        found = pick(json.loads(table)["rows"], **fields)
        assert found["bundles_per_step_and_register"] == row["visit_per_step_and_register"]


def test_what_models_faster_comes_first_on_a_gpu():
    figures = json.loads((RESULTS / "mosaic_gpu_static.json").read_text(encoding="utf-8"))
    faster = scan_claims.speed_over_triton(figures)
    first, second, _ = backends._PREFERENCE["gpu"]
    assert {first, second} == {"triton", "mosaic_gpu"}
    assert (first == "triton") == (faster < 1)


def test_a_figure_that_drifts_is_found():
    figures = json.loads((RESULTS / "predict_cpu.json").read_text(encoding="utf-8"))
    text = plain((ROOT / "README.md").read_text(encoding="utf-8"))
    figures["results"][0]["end_to_end"] += 1
    assert sum(claim not in text for claim in readme_predict(figures)) == 1
