"""The runner of pages: order, files, commands, what is left out, and where errors point."""

import traceback

import pytest
from markdown_pages import read_blocks, run_page


@pytest.fixture
def write_page(tmp_path):
    def write(text):
        page = tmp_path / "page.md"
        page.write_text(text)
        folder = tmp_path / "run"
        folder.mkdir()
        return page, folder

    return write


def test_blocks_run_in_order_and_share_names(write_page):
    page, folder = write_page(
        "# Title\n\n```python\nx = 1\n```\n\ntext\n\n```python\nx = x + 1\n"
        "open('made.txt', 'w').write('here')\n```\n\n    raise ValueError\n"
    )
    assert run_page(page, folder)["x"] == 2
    assert (folder / "made.txt").read_text() == "here"
    assert (folder / "configs").is_dir()


def test_titled_block_is_a_file_for_commands(write_page):
    page, folder = write_page(
        '```python title="double.py"\nimport sys\nprint(2 * int(sys.argv[1]))\n```\n'
        "```sh\npython double.py 21 > out.txt\n```\n"
    )
    run_page(page, folder)
    assert (folder / "out.txt").read_text() == "42\n"


def test_only_code_without_a_reason_against_it_runs(write_page):
    page, folder = write_page(
        "<!-- not run: takes days -->\n\n```python\nraise ValueError\n```\n"
        "<!-- not run: x -->\ntext in between\n```python\nran = True\n```\n"
        "```json\n{]\n```\n```\nplain\n```\n"
    )
    assert run_page(page, folder)["ran"]
    assert [b.not_run for b in read_blocks(page)] == ["takes days", None, None, None]


def test_errors_point_into_the_page(write_page):
    page, folder = write_page("text\n\n```python\nx = 1\n1 / 0\n```\n")
    with pytest.raises(ZeroDivisionError) as error:
        run_page(page, folder)
    last = traceback.extract_tb(error.value.__traceback__)[-1]
    assert (last.filename, last.lineno) == (str(page), 5)


def test_failing_command_is_shown_with_its_output(write_page):
    page, folder = write_page("```sh\necho before\nfalse\necho after\n```\n")
    with pytest.raises(AssertionError, match=r"page.md:2: exit code 1\nbefore\n$"):
        run_page(page, folder)


@pytest.mark.parametrize("text", ["```python\nx = 1\n", "```python title=../a.py\n```\n"])
def test_unreadable_fences_are_refused(text, write_page):
    page, _ = write_page(text)
    with pytest.raises(ValueError, match="page.md:1"):
        read_blocks(page)
