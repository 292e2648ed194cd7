#!/usr/bin/env bash
# Builds a source distribution and a wheel of selective-scan-jax and of posemamba-jax.
# usage: scripts/wheels.sh [FOLDER] [OPTION_OF_PYTHON_M_BUILD ...]
set -euo pipefail
cd "$(dirname "$0")/.."
folder=${1:-dist}
shift $(($# < 1 ? $# : 1))

python=${PYTHON:-.venv/bin/python}
[ -x "$(command -v "$python")" ] || python=python3
if ! "$python" -c "import build" 2>/dev/null; then
    echo "wheels: $python has no module build; pip install build, or set PYTHON" >&2
    exit 2
fi
# A wheel is built from the source distribution, so that it shows that nothing is missing there.
for project in kernels .; do
    "$python" -m build --outdir "$folder" "$@" "$project"
done
