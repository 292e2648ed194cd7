"""Pages elsewhere that ask to be run; see `markdown_pages.RUN_COMMENT`."""

import pytest
from markdown_pages import ROOT, pages_to_run, run_page


@pytest.mark.parametrize("page", pages_to_run(), ids=lambda page: str(page.relative_to(ROOT)))
def test_page(page, tmp_path):
    run_page(page, tmp_path)
