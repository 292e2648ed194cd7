"""The pages of docs/building_blocks: their code runs as written, and does what they say."""

import jax
import numpy as np
import pytest
from markdown_pages import ROOT, run_command, run_page
from selective_scan_jax import limb_term

from posemamba_jax.model.block import scan_order
from posemamba_jax.predict.lift import make_predict
from posemamba_jax.skeleton import H36M17

PAGES = ROOT / "docs" / "building_blocks"


@pytest.mark.slow
def test_own_training(tmp_path):
    page = run_page(PAGES / "own_training.md", tmp_path)
    history = page["history"]
    assert np.isfinite(history).all()
    assert np.mean(history[-5:]) < 0.8 * np.mean(history[:5])
    # The module inside the larger one is the trained model, and so is what was saved and loaded.
    predicted = page["again"]
    assert predicted.shape == (4, 9, 17, 3)
    np.testing.assert_allclose(page["poses"], predicted, rtol=1e-4, atol=1e-5)
    assert page["log_variance"].shape == (4, 9, 17, 1)
    assert page["same_config"] == page["config"]


def test_other_skeletons(tmp_path):
    page = run_page(PAGES / "other_skeletons.md", tmp_path)
    hand = page["HAND21"]
    assert sorted(child for _, child in hand.bones) == list(range(1, 21))
    # As the page says: the joint before on the way from the wrist.
    parents = {child: parent for parent, child in hand.bones}
    assert hand.limb_walk == (0, *(parents[joint] for joint in range(1, 21)))

    x = np.random.default_rng(0).normal(size=(1, 2, 21, 3)).astype(np.float32)
    with_limbs = limb_term(x, scan_order(page["config"]))
    np.testing.assert_array_equal(with_limbs, x + x[:, :, list(hand.limb_walk)])

    assert np.isfinite(page["loss"]) and page["pred"].shape == (2, 9, 21, 3)
    norms = [np.abs(leaf).max() for leaf in jax.tree.leaves(page["grads"])]
    assert np.isfinite(norms).all() and np.median(norms) > 0
    assert page["hand"].shape == (20, 21, 3)
    np.testing.assert_array_equal(page["hand"][:, 0], 0)


@pytest.mark.slow
def test_export(tmp_path):
    pytest.importorskip("flatbuffers", reason="exported files need flatbuffers")
    page = run_page(PAGES / "export.md", tmp_path)
    by_page = np.load(tmp_path / "poses_3d.npy")

    predict = make_predict(page["config"], page["variables"])
    poses_2d = page["poses_2d"]
    mirrored = predict(np.ascontiguousarray(H36M17.flip(poses_2d)))
    expected = (predict(poses_2d) + H36M17.flip(mirrored)) / 2
    np.testing.assert_allclose(by_page, expected, rtol=1e-4, atol=1e-5)
    assert (tmp_path / "lifter.mlir.bc").read_bytes()[:4] == b"ML\xefR"  # MLIR bytecode

    # Again where this package cannot be imported.
    blocked = tmp_path / "blocked"
    blocked.mkdir()
    for name in ("posemamba_jax", "selective_scan_jax"):
        (blocked / f"{name}.py").write_text("raise ImportError('blocked')\n")
    refused = run_command("python -c 'import posemamba_jax.model'", tmp_path, first_on_path=blocked)
    assert refused.returncode != 0 and "blocked" in refused.stderr
    (tmp_path / "poses_3d.npy").unlink()
    reloaded = run_command("python reload.py", tmp_path, first_on_path=blocked)
    assert reloaded.returncode == 0, reloaded.stderr
    np.testing.assert_array_equal(np.load(tmp_path / "poses_3d.npy"), by_page)


def test_authors_checkpoints(tmp_path):
    pytest.importorskip("torch", reason="reading the authors' files needs PyTorch")
    page = run_page(PAGES / "authors_checkpoints.md", tmp_path)
    assert page["error"] < 2e-5
    assert float(page["loss"]) == pytest.approx(float(page["authors"]["loss/total"]), rel=1e-4)
