"""Checkpoints with anything in their files: read or refused with one error, never a bare one."""

import os
import shutil
import tempfile
from pathlib import Path

import jax
import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from posemamba_jax.errors import UserError
from posemamba_jax.model.mesh import make_mesh
from posemamba_jax.training.checkpoint import (
    RunCheckpoints,
    load_arrays,
    load_model,
    load_run_config,
    save_model,
)
from posemamba_jax.training.state import make_state


@pytest.fixture(scope="module")
def folders(make_config, one_device, tmp_path_factory):
    """A run with one checkpoint, and a model alone."""
    config = make_config()
    state = make_state(config, make_mesh(config.mesh, one_device))
    parent = tmp_path_factory.mktemp("good")
    with RunCheckpoints(parent / "run") as checkpoints:
        checkpoints.save(state, {"evaluated_step": 0, "window": []}, config)
    save_model(parent / "model", config.model, jax.device_get(state.params))
    return parent


# An example takes a second: a few in every run, more among the slow tests.
@pytest.mark.parametrize("count", [5, pytest.param(20, marks=pytest.mark.slow)])
def test_changed_checkpoints_are_read_or_refused(count, folders, tmp_path):
    @settings(
        max_examples=int(os.environ.get("POSEMAMBA_FUZZ", count)),
        deadline=None,
        derandomize=True,
        phases=[Phase.explicit, Phase.generate],
        suppress_health_check=[HealthCheck.too_slow],
    )
    @given(
        kind=st.sampled_from(["run", "model"]),
        which=st.integers(0, 1000),
        at=st.floats(0, 1),
        removed=st.sampled_from([0, 1, 8, 300, 1 << 30]),
        inserted=st.sampled_from([b"", b"null", b"[]", b'"', b"-1"]) | st.binary(max_size=6),
    )
    def check(kind, which, at, removed, inserted):
        folder = Path(tempfile.mkdtemp(dir=tmp_path)) / kind
        shutil.copytree(folders / kind, folder)
        files = sorted(path for path in folder.rglob("*") if path.is_file())
        path = files[which % len(files)]
        content = path.read_bytes()
        start = int(at * len(content))
        path.write_bytes(content[:start] + inserted + content[start + removed :])
        for read in (load_model, load_run_config, load_arrays):
            if read is load_arrays and kind == "model":
                continue
            try:
                read(folder)
            except UserError as error:
                str(error).encode()
        shutil.rmtree(folder)

    check()


def test_an_untouched_one_reads(folders):
    _, variables = load_model(folders / "run")
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(variables))
