#!/usr/bin/env bash
# Trains the quickstart's model twice for a few epochs, once in one go and once killed without
# warning and stopped on the way, and compares every number of the two final checkpoints.
# usage: scripts/resume_demo.sh [FOLDER] [EPOCHS]
set -euo pipefail
cd "$(dirname "$0")/.."
folder=${1:-runs/resume_demo}
epochs=${2:-3}
python=${PYTHON:-.venv/bin/python}
if ! [ -x "$(command -v "$python")" ]; then
    echo "resume_demo: no $python; run scripts/setup.sh .venv, or set PYTHON" >&2
    exit 2
fi
if [ -e "$folder" ]; then
    echo "resume_demo: $folder exists; give another folder, or remove it" >&2
    exit 2
fi

# train RUN [OPTION ...]: starts or continues a run.
train() {
    local run=$1
    shift
    exec "$python" train.py --config configs/quickstart.yaml --run_dir "$folder/$run" \
        --train.epochs "$epochs" --train.log_every 4 --train.eval_every 0 --resume "$@"
}

# interrupt SIGNAL LINES: trains until metrics.jsonl has so many lines, then sends the signal.
interrupt() {
    local code=0
    train interrupted &
    while [ "$(cat "$folder/interrupted/metrics.jsonl" 2>/dev/null | wc -l)" -lt "$2" ]; do
        kill -0 $! 2>/dev/null || break
        sleep 0.2
    done
    kill "-$1" $!
    wait $! || code=$?
    echo "--- SIG$1: exit code $code"
}

echo "--- once, in one go"
(train uninterrupted)
# 128 steps and 32 lines an epoch: in the middle of the first and of the second.
echo "--- once more, terminated in the first epoch"
interrupt TERM 17
echo "--- resumed, killed in the second epoch"
interrupt KILL 49
echo "--- resumed"
(train interrupted)
"$python" -m posemamba_jax.training.compare "$folder/uninterrupted" "$folder/interrupted"
