#!/usr/bin/env bash
# Sets up .venv, then trains and evaluates a small model on the built-in motion.
# Called again, it goes on where it was interrupted.
# usage: scripts/quickstart.sh [RUN_FOLDER]
set -euo pipefail
cd "$(dirname "$0")/.."
scripts/setup.sh .venv
run=${1:-runs/quickstart}
.venv/bin/python train.py --config configs/quickstart.yaml --run_dir "$run" --resume
.venv/bin/python eval.py --checkpoint "$run"
echo "pictures: $run/poses.png (predicted against true poses), $run/curves.png (loss and error)"
echo "next, lift a video of your own with the model that is installed: .venv/bin/python predict.py VIDEO.mp4 --render html"
