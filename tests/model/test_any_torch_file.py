"""PyTorch files and model folders with anything in them are read or refused, and run nothing."""

import io
import os
import pickle

import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from posemamba_jax.convert import config_from_torch, from_torch, load_torch_file
from posemamba_jax.errors import UserError

torch = pytest.importorskip("torch")

FUZZ = settings(
    max_examples=int(os.environ.get("POSEMAMBA_FUZZ", "60")),
    deadline=None,
    derandomize=True,
    phases=[Phase.explicit, Phase.generate],
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


def saved(**options):
    file = io.BytesIO()
    keys = ["Spatial_pos_embed", "head.1.weight", "STEblocks.0.norm.weight"]
    state = {f"module.{key}": torch.ones(1, 4, 3) for key in keys}
    torch.save({"epoch": 3, "lr": np.float64(0.1), "model_pos": state}, file, **options)
    return file.getvalue()


GOOD = [saved(), saved(_use_new_zipfile_serialization=False)]


@FUZZ
@given(
    which=st.integers(0, 1),
    changes=st.lists(
        st.tuples(
            st.floats(0, 1), st.sampled_from([0, 1, 2, 8, 300, 1 << 30]), st.binary(max_size=6)
        ),
        min_size=1,
        max_size=4,
    ),
)
def test_changed_files_are_read_or_refused(which, changes, tmp_path):
    content = GOOD[which]
    for at, removed, inserted in changes:
        start = int(at * len(content))
        content = content[:start] + inserted + content[start + removed :]
    path = tmp_path / "x.bin"
    path.write_bytes(content)
    try:
        state = load_torch_file(path)
        config_from_torch(state)
        from_torch(state)
    except (UserError, ValueError) as error:
        str(error).encode()


class Payload:
    def __reduce__(self):
        return os.mkdir, ("ran",)


@pytest.mark.parametrize(
    "dump", [torch.save, lambda value, path: path.write_bytes(pickle.dumps(value))]
)
def test_code_is_not_run(dump, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    dump({"model_pos": {"a": Payload()}}, tmp_path / "x.bin")
    with pytest.raises(UserError, match="could run code"):
        load_torch_file(tmp_path / "x.bin")
    assert not (tmp_path / "ran").exists()
