"""Reads the figures that a run records, a JSON object in each line of metrics.jsonl."""

import json
from pathlib import Path

METRICS_FILE = "metrics.jsonl"


def read_metrics(run_dir: str | Path) -> list[dict[str, float]]:
    """Reads the lines of metrics.jsonl.

    A line cut short by a crash, or damaged otherwise, is left out, and so is a figure that is no
    finite number.
    """
    path = Path(run_dir) / METRICS_FILE
    text = path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""
    rows = []
    for line in text.splitlines():
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if isinstance(row, dict) and type(row.get("step")) is int:
            rows.append({name: value for name, value in row.items() if _is_figure(value)})
    return rows


def _is_figure(value: object) -> bool:
    return isinstance(value, int | float) and abs(value) < 1e300  # Never true for NaN.
