"""The networks that benchmarks/other_models.py measures are those that were published."""

import numpy as np
import pytest
from benchmark_modules import load_benchmark

torch = pytest.importorskip("torch")


@pytest.fixture(scope="module")
def benchmark():
    return load_benchmark("other_models")


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """What is small is slower on several, and very much so on busy cores."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.parametrize(
    "name",
    (
        "MotionAGFormer-XS", "MotionAGFormer-S", "MotionAGFormer-B", "MotionAGFormer-L",
        "MotionBERT-lite", "MotionBERT", "VideoPose3D", "PyTorch-PoseMamba-S",
        "PyTorch-PoseMamba-B", "PyTorch-PoseMamba-L",
    ),
)  # fmt: skip
def test_as_many_parameters_as_published(benchmark, name):
    model = benchmark.OTHERS[name].make()
    assert (name == "VideoPose3D") == (getattr(model, "receptive_field", None) == 243)


def test_another_number_of_parameters_is_refused(benchmark):
    build = benchmark.OTHERS["MotionAGFormer-XS"].build
    with pytest.raises(SystemExit, match="2,241,531 parameters, but 2.3 M are published"):
        benchmark.OtherModel(build, "2.3", 45.1).make()


@pytest.mark.parametrize("name", ("MotionBERT", "MotionAGFormer", "VideoPose3D", "TorchPoseMamba"))
def test_small_ones_lift_clips_and_every_parameter_is_trained(benchmark, name):
    torch.manual_seed(0)
    frames, channels, padding = 9, 3, 0
    if name == "MotionBERT":
        model = benchmark.MotionBERT(16, 2, depth=1, heads=2, representation=8, frames=frames)
    elif name == "MotionAGFormer":
        model = benchmark.MotionAGFormer(16, 1, frames, heads=2, representation=8)
    elif name == "VideoPose3D":
        model = benchmark.VideoPose3D(channels=8, widths=(3, 3), dropout=0)
        channels, padding = 2, model.receptive_field - 1
        assert padding == 8
    else:
        model = benchmark.TorchPoseMamba(16, 1, frames, chunk=8)
        channels = 2
    poses = model.train()(torch.randn(2, frames + padding, 17, channels))
    assert poses.shape == (2, frames, 17, 3)
    (poses**2).sum().backward()
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in model.parameters())


def test_the_authors_weights_give_the_authors_poses(benchmark, data_dir):
    with np.load(data_dir / "posemamba_tiny.npz") as goldens:
        weights = {
            key.removeprefix("param/"): torch.tensor(goldens[key])
            for key in goldens
            if key.startswith("param/")
        }
        keypoints, expected = torch.tensor(goldens["input"]), goldens["output"]
    model = benchmark.TorchPoseMamba(16, 2, frames=9, chunk=2).eval()
    model.load_state_dict(weights)
    with torch.inference_mode():
        poses = model(keypoints).numpy()
    assert np.abs(poses - expected).max() < 2e-5 * np.abs(expected).max()


def test_compared_with_the_fastest_of_no_larger_error(benchmark):
    def row(model, error, forward, training):
        return {
            "model": model,
            "published_error_mm": error,
            "forward_frames_per_second": forward,
            "training_frames_per_second": training,
        }

    rows = [
        row("PoseMamba-S", 41.8, 800, 240),
        row("PoseMamba-L", 38.1, 200, 60),
        row("MotionBERT", 39.2, 100, 40),
        row("VideoPose3D", 46.8, 1600, 480),
        row("MotionBERT-lite", 37.0, 100, 40),
    ]
    large, video = benchmark.compare(rows)
    assert (large["instead"], large["forward_ratio"], large["training_ratio"]) == (
        "PoseMamba-L", 2, 1.5,
    )  # fmt: skip
    assert (video["instead"], video["forward_ratio"]) == ("PoseMamba-S", 0.5)


def test_unknown_models_are_refused_and_known_ones_listed(benchmark):
    with pytest.raises(SystemExit, match="'MotionBert', expected any of PoseMamba-S"):
        benchmark.chosen("MotionBERT,MotionBert")
    measured = benchmark.chosen(None)
    assert {*benchmark.OURS, "MotionBERT", "PyTorch-PoseMamba-S"} <= {*measured}
    assert benchmark.chosen("VideoPose3D,PyTorch-PoseMamba-L")[1] not in measured
