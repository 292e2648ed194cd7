"""Reads the figures that a run records, a JSON object in each line of metrics.jsonl."""

import json
from pathlib import Path

METRICS_FILE = "metrics.jsonl"


def read_metrics(run_dir: str | Path) -> list[dict[str, float]]:
    """Reads the lines of metrics.jsonl; one cut short by a crash is left out."""
    path = Path(run_dir) / METRICS_FILE
    rows = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.is_file() else []:
        try:
            row = json.loads(line)
        except ValueError:
            continue
        if isinstance(row, dict) and isinstance(row.get("step"), int):
            rows.append(row)
    return rows
