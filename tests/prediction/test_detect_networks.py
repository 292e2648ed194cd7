"""TFLite networks in JAX: what a file says is what is computed, and damage is named."""

import jax
import numpy as np
import pytest
import real_files
from PIL import Image
from tiny_tflite import Writer

from posemamba_jax.predict.detect import decode, graph, landmarks
from posemamba_jax.predict.detect.engines import make_engine
from posemamba_jax.predict.detect.regions import cut_out
from posemamba_jax.predict.detect.tflite import DamagedNetworkError, NetworkError, read_graph
from posemamba_jax.predict.detect.weights import find_networks

SAME, VALID, RELU, RELU6 = 0, 1, 1, 3


def tiny_network(rng) -> tuple[bytes, dict[str, np.ndarray]]:
    """A network with a float16 and a sparse kernel; its constants by name."""
    w = Writer()
    c = {
        "kernel": rng.normal(size=(4, 3, 3, 3)).astype(np.float16),
        "bias": rng.normal(size=4).astype(np.float32),
        "depthwise": rng.normal(size=(1, 3, 3, 4)).astype(np.float32),
        "sparse": np.zeros((4, 1, 1, 4), np.float32),
    }
    c["sparse"][[0, 1, 3], 0, 0, [2, 0, 3]] = [1.5, -2.0, 0.5]
    image = w.tensor("image", (1, 6, 7, 3))
    half = w.tensor("half", (4, 3, 3, 3), c["kernel"], "float16")
    kernel = w.tensor("kernel", (4, 3, 3, 3))
    bias = w.tensor("bias", (4,), c["bias"])
    conv = w.tensor("conv", (1, 3, 4, 4))
    depthwise = w.tensor("depthwise", (1, 3, 3, 4), c["depthwise"])
    deep = w.tensor("deep", (1, 3, 4, 4))
    # Rows 0 to 3 hold one value each but row 2, at columns 2, 0 and 3.
    sparsity = w.sparsity((0, 1, 2, 3), (), (4, 1, 1, ([0, 1, 2, 2, 3], [2, 0, 3])))
    values = np.array([1.5, -2.0, 0.5], np.float32)
    packed = w.tensor("packed", (4, 1, 1, 4), values, "float32", sparsity)
    sparse = w.tensor("sparse", (4, 1, 1, 4))
    mixed = w.tensor("mixed", (1, 3, 4, 4))
    out = w.tensor("out", (1, 3, 4, 4))
    large = w.tensor("large", (1, 6, 8, 4))
    w.operation(6, [half], [kernel])
    w.operation(3, [image, kernel, bias], [conv],
                {0: ("b", SAME), 1: ("i", 2), 2: ("i", 2), 3: ("b", RELU6)})  # fmt: skip
    w.operation(4, [conv, depthwise, bias], [deep],
                {0: ("b", SAME), **dict.fromkeys((1, 2, 3), ("i", 1)), 4: ("b", RELU)})  # fmt: skip
    w.operation(124, [packed], [sparse])
    w.operation(3, [deep, sparse, bias], [mixed], {0: ("b", VALID), 1: ("i", 1), 2: ("i", 1)})
    w.operation(0, [mixed, conv], [out], {0: ("b", 0)})
    w.operation(23, [out], [large], {2: ("?", False), 3: ("?", True)})
    return w.finish([image], [out, large]), c


def convolve(x, kernel, bias, stride):
    """TFLite's padding "SAME", in plain loops; x (height, width, in), kernel (out, h, w, in)."""
    size = kernel.shape[1]
    lengths = [-(-n // stride) for n in x.shape[:2]]
    extra = [max((m - 1) * stride + size - n, 0) for m, n in zip(lengths, x.shape, strict=False)]
    x = np.pad(x, [(e // 2, e - e // 2) for e in extra] + [(0, 0)])
    out = np.zeros((*lengths, kernel.shape[0]))
    for i in range(lengths[0]):
        for j in range(lengths[1]):
            patch = x[i * stride : i * stride + size, j * stride : j * stride + size]
            out[i, j] = np.einsum("ohwi,hwi->o", kernel, patch) + bias
    return out


def test_a_small_network_computes_what_its_file_says():
    rng = np.random.default_rng(0)
    content, c = tiny_network(rng)
    network = read_graph(content, "tiny")
    assert [o.name for o in network.operations if o.name in ("DEQUANTIZE", "DENSIFY")] == []
    apply, weights = graph.build(network, network.outputs)
    images = rng.normal(size=(2, 6, 7, 3)).astype(np.float32)
    out, large = (np.asarray(v) for v in jax.jit(apply)(weights, images))
    for image, got, enlarged in zip(images, out, large, strict=True):
        conv = np.clip(convolve(image, c["kernel"].astype(float), c["bias"], 2), 0, 6)
        depthwise = np.einsum("hwc,cd->chwd", c["depthwise"][0], np.eye(4))
        deep = np.maximum(convolve(conv, depthwise, c["bias"], 1), 0)
        wanted = deep @ c["sparse"][:, 0, 0].T + c["bias"] + conv
        np.testing.assert_allclose(got, wanted, atol=1e-4)
        # Half-pixel centres, twice as large: 3/4 and 1/4 of the neighbours.
        np.testing.assert_allclose(enlarged[0, 0], wanted[0, 0], atol=1e-4)
        rows = 0.75 * wanted[0] + 0.25 * wanted[1]
        np.testing.assert_allclose(enlarged[1, 1], 0.75 * rows[0] + 0.25 * rows[1], atol=1e-4)


def test_damaged_networks_are_named_and_nothing_else_is_raised():
    content, _ = tiny_network(np.random.default_rng(0))
    with pytest.raises(NetworkError, match="weights.bin: no TFLite network"):
        read_graph(b"\x00" * 64, "weights.bin")
    rng = np.random.default_rng(1)
    damaged = [content[:n] for n in range(8, len(content), 41)]
    for _ in range(300):
        changed = np.frombuffer(content, np.uint8).copy()
        places = rng.integers(8, len(content), 3)
        changed[places] = rng.integers(0, 256, 3)
        damaged.append(changed.tobytes())
    named = 0
    for data in damaged:
        try:
            read_graph(data, "weights.bin")
        except NetworkError as error:
            assert str(error).startswith("weights.bin: ") and "\n" not in str(error)
            named += isinstance(error, DamagedNetworkError)
    assert named > 100


@pytest.mark.slow
@pytest.mark.parametrize("model", ["heavy", "full"])
def test_real_networks_equal_litert_on_the_same_crop(model, tmp_path, monkeypatch):
    """Landmarks of a real person within 0.01 pixel of the crop's 256."""
    pytest.importorskip("ai_edge_litert", reason="needs pip install ai-edge-litert")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    networks = find_networks(model, str(real_files.need(*real_files.NETWORKS)))
    video = decode.open_video(real_files.camera(1, tmp_path))
    frame = next(decode.read_frames(video, video.size))
    region = np.array([540.0, 830.0, 900.0, 0.1])
    crop = cut_out(Image.fromarray(frame), region, landmarks.SIDE)[None]
    ours, theirs = make_engine(networks), make_engine(networks, "litert")
    numbers, reference = ours.locate(crop), theirs.locate(crop)
    assert numbers[1][0, 0] > 0.9  # a person is there
    places, wanted = (n[0].reshape(39, 5)[:, :3] for n in (numbers, reference))
    assert np.abs(places - wanted).max() < 0.01
    small = crop[:, :224, :224]
    for a, b in zip(ours.detect(small), theirs.detect(small), strict=True):
        assert np.abs(a - b).max() < 0.01
