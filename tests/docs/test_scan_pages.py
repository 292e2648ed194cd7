"""The code of the scan's pages in docs/ runs as it stands."""

import re
from pathlib import Path

import pytest

DOCS = Path(__file__).parents[2] / "docs"


@pytest.mark.parametrize(
    ("page", "least"), [("selective_scan.md", 7), ("sharding.md", 2), ("mosaic_tpu.md", 1)]
)
def test_code_runs(page, least):
    text = (DOCS / page).read_text()
    blocks = re.findall(r"(<!-- not run: .*-->\n\n)?```python\n(.*?)```", text, flags=re.DOTALL)
    run = [code for not_run, code in blocks if not not_run]
    assert len(run) >= least
    exec(compile("\n".join(run), page, "exec"), {"__name__": "page"})
