"""What compares the shipped model with other ways of lifting, on made-up motion."""

import json

import numpy as np
import pytest
from benchmark_modules import load_benchmark

from posemamba_jax.data.motion.actions import perform
from posemamba_jax.data.motion.body import draw_body
from posemamba_jax.data.sources.drawn_mocap import DrawConfig, DrawnClips, Motion
from posemamba_jax.losses import LossWeights


@pytest.fixture(scope="module")
def benchmark():
    """The benchmark as a module."""
    return load_benchmark("pretrained")


def clips(split, **options):
    """Walks of two subjects, 90 and 40 frames, seen exactly."""
    rng = np.random.default_rng(3)
    walk = perform("walk", rng, draw_body(rng), np.arange(90) / 30).astype(np.float32)
    motions = [Motion("07/07_01", walk), Motion("14/14_02", walk[:40])]
    return DrawnClips(
        motions, DrawConfig(**options), clip_len=9, stride=9, fps=30, seed=0, split=split,
        input_2d="ground_truth",
    )  # fmt: skip


def test_windows_are_spread_over_every_recording(benchmark):
    source = clips("test")
    windows = benchmark.Windows(source, 3)
    names = [windows[i]["action"] for i in range(len(windows))]
    assert names == ["07/07_01"] * 3 + ["14/14_02"] * 3
    starts = [int(windows[i]["frame_ids"][0] % (1 << 32)) for i in range(3)]
    assert np.diff(starts).min() >= 27 and starts[-1] < 90


def test_figures_are_those_of_known_errors(benchmark):
    windows = benchmark.Windows(clips("test"), 3)
    truth = [windows[i] for i in range(len(windows))]

    def predict(poses_2d):
        """Gives the targets, 100 mm too far away in every second frame, but for the root."""
        found = []
        for seen in poses_2d:
            (clip,) = [c for c in truth if np.array_equal(c["poses_2d"][..., :2], seen)] or [None]
            pose = np.zeros((9, 17, 3)) if clip is None else clip["poses_3d_mm"].copy()
            pose[::2, 1:, 2] += 100
            found.append(pose / (1 if clip is None else clip["mm_per_unit"][:, None, None]))
        return np.stack(found)

    # Of the mirrored input this model knows nothing.
    found = benchmark.measure(predict, windows, flip=False)
    assert set(found) == {"all", "walking", "everyday"}
    share = 16 / 17  # of the joints
    for figures in found.values():
        assert figures["mpjpe_mm"] == pytest.approx(100 * share * 5 / 9, rel=0.1)
        assert figures["mpjve_mm"] == pytest.approx(100 * share, rel=1e-4)
        assert figures["acceleration_mm"] == pytest.approx(200 * share, rel=1e-4)


@pytest.mark.slow
def test_trained_ones_learn_and_all_are_tabled(benchmark, tmp_path):
    train, windows = clips("train", clips_per_epoch=64), benchmark.Windows(clips("test"), 5)
    models, steps = benchmark.train_baselines(
        train, LossWeights(velocity=2.0, diff=0.0), lambda: lambda steps: steps / 40,
        width=64, channels=64, batch_size=8, learning_rate=0.03,
    )  # fmt: skip
    assert steps == {"network per frame": 40, "convolutions over time": 40}
    rows = [
        {"name": name, "input_2d": "detected", "figures": benchmark.measure(predict, windows)}
        for name, predict in models.items()
    ]
    errors = {row["name"]: row["figures"]["all"]["mpjpe_mm"] for row in rows}
    assert set(errors) == {"mean pose", "linear regression", *steps}
    assert max(errors[name] for name in errors if name != "mean pose") < 0.9 * errors["mean pose"]

    tables = benchmark.write_tables(rows, 0.5, {name: 8 * count for name, count in steps.items()})
    card = tmp_path / "card.md"
    card.write_text("above\n<!-- figures -->\nold\n<!-- end of figures -->\nbelow\n")
    benchmark.write_card(tables, card)
    text = card.read_text()
    assert f"| linear regression | {errors['linear regression']:.1f} |" in text
    assert text.startswith("above\n<!-- figures -->\n") and "old" not in text
    assert text.endswith("<!-- end of figures -->\nbelow\n")
    assert "0.5 minutes, on 320 and 320 clips" in text
    assert "| P1 walking | P1 everyday |" in text and json.dumps(rows)
