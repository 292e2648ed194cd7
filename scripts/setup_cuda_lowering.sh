#!/usr/bin/env bash
# Lets an environment without CUDA lower programs for it: jax-triton imports JAX's CUDA plugin, whose
# dependencies (gigabytes of CUDA libraries) only running needs.
# usage: scripts/setup_cuda_lowering.sh VENV
set -euo pipefail
cd "$(dirname "$0")/.."
jax=$("$1/bin/python" -c 'import importlib.metadata as m; print(m.version("jax"))')
"$1/bin/python" -m pip --disable-pip-version-check install --quiet --no-deps "jax-cuda12-plugin==$jax"
