#!/usr/bin/env bash
# On a machine with an NVIDIA GPU: the numeric tests on the device, block sizes tuned for it, then
# time and memory of every implementation that can run there, in benchmarks/results/gpu.{json,md}.
# usage: benchmarks/gpu.sh [arguments of benchmarks/gpu.py]
set -euo pipefail
cd "$(dirname "$0")/.."
export PYTHONPATH="$PWD:$PWD/kernels${PYTHONPATH:+:$PYTHONPATH}"
python=${PYTHON:-python}
JAX_PLATFORMS=cuda "$python" -m pytest -q -m gpu kernels/tests/test_gpu_device.py
JAX_PLATFORMS=cuda "$python" -m selective_scan_jax.tune
"$python" benchmarks/gpu.py "$@"
