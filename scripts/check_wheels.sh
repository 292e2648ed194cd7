#!/usr/bin/env bash
# Builds the wheels, once without and once with a C++ compiler, installs them into an environment
# that holds nothing else, and runs tests of both packages there, away from their sources.
# usage: scripts/check_wheels.sh [OPTION_OF_PYTHON_M_BUILD ...]
set -euo pipefail
cd "$(dirname "$0")/.."
python=${PYTHON:-.venv/bin/python}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
unset PYTHONPATH SELECTIVE_SCAN_CPU_LIBRARY
[ -n "${PYTHONDONTWRITEBYTECODE:-}" ] || export PIP_COMPILE=0  # as in setup.sh

echo "== wheels: building"
PYTHON=$python scripts/wheels.sh "$work/native" "$@" >"$work/build.log" 2>&1 ||
    { tail -30 "$work/build.log" >&2; exit 1; }
CXX=/nonexistent "$python" -m build --wheel --outdir "$work/pure" "$@" kernels >"$work/build.log" 2>&1 ||
    { tail -30 "$work/build.log" >&2; exit 1; }
ls "$work/native" "$work/pure"

# The kernels' tests come from the source distribution, the model's are copied without the package.
mkdir "$work/kernels" "$work/model"
tar xzf "$work"/native/selective_scan_jax-*.tar.gz -C "$work/kernels" --strip-components 1
rm -r "$work/kernels/selective_scan_jax"
cp -r tests configs train.py eval.py predict.py pyproject.toml "$work/model"

"$python" -m venv "$work/env"
install() { "$work/env/bin/python" -m pip --disable-pip-version-check install --quiet "$@"; }
# run_tests FOLDER PYTEST_ARGUMENT ...
# Compiled as for users, which tests elsewhere do without.
run_tests() {
    (cd "$work/$1" && shift && export JAX_PLATFORMS=cpu JAX_DISABLE_MOST_OPTIMIZATIONS=0 &&
        "$work/env/bin/python" -m pytest -q -n 2 -r f -p no:cacheprovider -m "not slow" "$@")
}

echo "== wheels: the scan alone, built without a compiler"
scan=$(echo "$work"/pure/selective_scan_jax-*.whl)
install "${scan}[test]"
(cd "$work" && env/bin/python - <<'EOF'
import importlib.util
import pathlib

import selective_scan_jax

assert "site-packages" in pathlib.Path(selective_scan_jax.__file__).parts
for name in ("flax", "grain", "matplotlib", "optax", "posemamba_jax"):
    assert importlib.util.find_spec(name) is None, f"{name} was installed with the scan"
reason = selective_scan_jax.implementations()["cpu"]
assert "no C++ compiler was found" in reason, reason
assert selective_scan_jax.default_implementation() == "xla"
EOF
)
run_tests kernels tests/test_arguments.py tests/test_tuning.py tests/test_cpu_kernel.py
run_tests kernels tests/test_selective_scan.py tests/test_cross_scan.py -k "matches_float64 and xla"

echo "== wheels: the model on that scan"
install "$work"/native/posemamba_jax-*.whl
(cd "$work" && env/bin/python -m posemamba_jax.pretrained)
run_tests model tests/model/test_goldens.py tests/training/test_config.py

echo "== wheels: both, built with a compiler"
install --force-reinstall --no-deps "$work"/native/selective_scan_jax-*.whl
(cd "$work" && env/bin/python -c "
import selective_scan_jax
assert selective_scan_jax.default_implementation() == 'cpu', selective_scan_jax.implementations()")
run_tests kernels tests/test_cpu_kernel.py tests/test_selective_scan.py tests/test_cross_scan.py \
    -k "test_cpu_kernel or (matches_float64 and cpu)"
run_tests model tests/model/test_goldens.py -k "output"
