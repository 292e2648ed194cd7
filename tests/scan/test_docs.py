"""The example in docs/selective_scan.md runs as it stands."""

import re
from pathlib import Path

DOCS = Path(__file__).parents[2] / "docs" / "selective_scan.md"


def test_example_runs():
    blocks = re.findall(r"```python\n(.*?)```", DOCS.read_text(), flags=re.DOTALL)
    assert len(blocks) >= 4
    exec(compile("\n".join(blocks), str(DOCS), "exec"), {})
