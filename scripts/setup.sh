#!/usr/bin/env bash
# Creates a virtual environment and installs this checkout into it.
# usage: scripts/setup.sh VENV [EXTRA,...] [PIP_REQUIREMENT ...]
set -euo pipefail
cd "$(dirname "$0")/.."
venv=$1 extras=${2:-}
shift $(($# < 2 ? $# : 2))

python=${PYTHON:-}
if [ -z "$python" ]; then
    for candidate in python3.11 python3.12 python3.13 python3; do
        if command -v "$candidate" >/dev/null && "$candidate" -c \
            'import sys, venv; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
            python=$candidate
            break
        fi
    done
fi
if [ -z "$python" ]; then
    echo "setup: needs Python 3.11 or newer with the venv module; set PYTHON to its path" >&2
    exit 2
fi

[ -x "$venv/bin/python" ] || "$python" -m venv "$venv"
echo "setup: $("$venv/bin/python" --version) in $venv; installing (a minute or two on a new machine)"
# Compiling all that an environment holds to bytecode is half of installing it. Python does it anyway
# for what is imported, unless it is told not to write: then every start would do it again, for
# longer than all else that importing JAX takes.
[ -n "${PYTHONDONTWRITEBYTECODE:-}" ] || export PIP_COMPILE=0
pip() { "$venv/bin/python" -m pip --disable-pip-version-check install --quiet "$@"; }
# Built in isolation, so against the oldest jaxlib that is supported: environments with a newer one
# can share this checkout's native kernels.
pip --editable ./kernels --editable ".${extras:+[$extras]}" "$@"
