#!/usr/bin/env bash
# Everything that is measured on an NVIDIA GPU, in one unattended call of about ten minutes.
#
# usage: benchmarks/gpu.sh [STAGE ...]
#
# Stages, in this order unless some are named: tests (numbers on the device), times (the scan of a
# block), training (whole steps of S and B), memory, mamba (mamba-ssm's CUDA kernel), tuning. Each has
# a time limit, writes what it finds into $OUT as it goes, and takes up where it was cut off when it
# is run again; a stage that fails is recorded in $OUT/stages.txt and the next one runs.
#
# OUT       where results go (default benchmarks/results/gpu)
# PYTHON    the interpreter (default python)
# LIMIT     seconds of every stage, instead of each one's own
# DRY=1     tiny shapes on the CPU, kernels interpreted: shows that the script works
# MAMBA     what pip builds mamba-ssm from where nvcc is there (default mamba-ssm)
set -uo pipefail
cd "$(dirname "$0")/.."
export PYTHONPATH="$PWD:$PWD/kernels${PYTHONPATH:+:$PYTHONPATH}" XLA_PYTHON_CLIENT_PREALLOCATE=false
python=${PYTHON:-python}
OUT=${OUT:-benchmarks/results/gpu}
mkdir -p "$OUT"
OUT=$(cd "$OUT" && pwd)
export OUT SELECTIVE_SCAN_TUNING=${SELECTIVE_SCAN_TUNING:-$OUT/tuning.json}
small=() tune=(--batch 16,1,64,4) platform=cuda
if [[ ${DRY:-} ]]; then
  platform=cpu small=(--dry)
  tune=(--batch 1 --frames 2 --joints 2 --channels 4 --state 2 --rank 1 --repeats 1)
fi
export JAX_PLATFORMS=$platform

declare -A limits=([tests]=150 [times]=150 [training]=150 [memory]=60 [mamba]=120 [tuning]=120)

# mamba-ssm is compiled for this GPU alone, while other stages run.
if [[ ! ${DRY:-} ]] && command -v nvcc > /dev/null &&
  "$python" -c "import torch" 2> /dev/null && ! "$python" -c "import selective_scan_cuda" 2> /dev/null; then
  arch=$(nvidia-smi --query-gpu=compute_cap --format=csv,noheader | head -1)
  TORCH_CUDA_ARCH_LIST=$arch MAMBA_FORCE_BUILD=TRUE MAX_JOBS=4 nice "$python" -m pip install \
    --no-build-isolation --no-deps "${MAMBA:-mamba-ssm}" > "$OUT/mamba_build.txt" 2>&1 &
fi

failed=0
(($#)) || set -- tests times training memory mamba tuning
for stage; do
  case $stage in
    tests) command=("$python" -m pytest -q -m gpu -p no:cacheprovider kernels/tests/test_gpu_device.py) ;;
    tuning) command=("$python" -m selective_scan_jax.tune "${tune[@]}") ;;
    times | training | memory | mamba) command=("$python" benchmarks/gpu.py "$stage" "${small[@]}") ;;
    *)
      echo "error: no stage is called $stage; there are: tests times training memory mamba tuning" >&2
      exit 2
      ;;
  esac
  began=$SECONDS
  echo "stage $stage"
  timeout "${LIMIT:-${limits[$stage]}}" "${command[@]}" 2>&1 | tee "$OUT/$stage.txt"
  case ${PIPESTATUS[0]} in
    0) said=done ;;
    124) said="stopped at its time limit" failed=1 ;;
    *) said="failed, see $stage.txt" failed=1 ;;
  esac
  echo "$stage: $said, $((SECONDS - began)) s" | tee -a "$OUT/stages.txt"
done
"$python" benchmarks/gpu.py report
exit $failed
