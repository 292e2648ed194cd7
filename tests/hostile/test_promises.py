"""The page on recovery promises what tests hold, and counts what they try."""

import re
from pathlib import Path

import test_drawn
import test_trials

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "recovery.md").read_text(encoding="utf-8")


def test_a_promise_is_a_sentence_with_its_test():
    section = PAGE.partition("## Promises")[2].partition("\n## ")[0]
    rows = re.findall(r"^\| (.*) \| (.*) \|$", section, re.M)[2:]
    assert len(rows) >= 15
    for promise, tests in rows:
        assert re.fullmatch(r"[A-Z`][^.]*(?:\.[^ ][^.]*)*\.", promise), promise
        named = re.findall(r"`(tests/[a-z_/]+\.py)(?:::(\w+))?`", tests)
        assert named, promise
        for file, test in named:
            text = (ROOT / file).read_text(encoding="utf-8")
            assert f"def {test}(" in text if test else True, (file, test)


def test_the_page_counts_the_commands():
    written = f"{len(test_trials.CASES)} commands written down, and {test_drawn.USUAL} drawn ones"
    assert written in PAGE, written
