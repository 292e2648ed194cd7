#!/usr/bin/env bash
# Sets up .venv, then trains and evaluates a small model on the built-in motion.
set -euo pipefail
cd "$(dirname "$0")/.."
scripts/setup.sh .venv
run=${1:-runs/quickstart}
.venv/bin/python train.py --config configs/quickstart.yaml --run_dir "$run"
.venv/bin/python eval.py --checkpoint "$run"
echo "pictures: $run/poses.png (predicted against true poses), $run/curves.png (loss and error)"
