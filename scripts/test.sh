#!/usr/bin/env bash
# Sets up .venv with everything the tests compare against, then runs them: all but the slow ones.
# usage: scripts/test.sh [pytest arguments]; the slow ones: scripts/test.sh -m slow
set -euo pipefail
cd "$(dirname "$0")/.."
scripts/setup.sh .venv dev,parity,cross "torch==2.13.0"
scripts/setup_cuda_lowering.sh .venv
# mamba-ssm holds the reference scan. Only its Python files are needed, so its CUDA part is not built.
if ! .venv/bin/python -m pip show --quiet mamba-ssm 2>/dev/null; then
    MAMBA_FORCE_BUILD=TRUE MAMBA_SKIP_CUDA_BUILD=TRUE .venv/bin/python -m pip install --quiet \
        --disable-pip-version-check --no-build-isolation --no-deps mamba-ssm
fi
POSEMAMBA_REQUIRE_PARITY=1 exec .venv/bin/python -m pytest -n 2 --dist loadfile -m "not slow" "$@"
