#!/usr/bin/env bash
# Makes a small scaling report with the libtpu that JAX pins, which `pip install '.[tpu]'` brings. The
# tests have the newest.
set -euo pipefail
cd "$(dirname "$0")/.."
pinned=$(.venv/bin/python - <<'PY'
import importlib.metadata

(pinned,) = (r for r in importlib.metadata.requires("jax") if r.startswith("libtpu"))
print(pinned.partition(";")[0].strip())
PY
)
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
.venv/bin/python -m pip --disable-pip-version-check install --quiet --no-deps --target "$folder" "$pinned"
# One chip is the slice that some versions refuse, as less than a host has.
PYTHONPATH=$folder${PYTHONPATH:+:$PYTHONPATH} .venv/bin/python -m posemamba_jax.scaling \
    --topology v5e:1x1 --largest 0 --model.dim 8 --model.depth 2 --data.clip_len 9 --out "$folder/report"
