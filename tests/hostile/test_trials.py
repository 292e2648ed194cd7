"""Commands in a hostile world: each ends as documented, says why, and loses nothing."""

import cases_config
import cases_convert
import cases_predict
import cases_run
import pytest
from trial import check

GROUPS = {
    "predict": cases_predict.CASES,
    "config": cases_config.CASES,
    "convert": cases_convert.CASES,
    "run": cases_run.CASES,
}
CASES = {f"{group}: {case.name}": case for group, cases in GROUPS.items() for case in cases}
# Settings are refused at once; of the others, which take longer, every fourth is a quick one.
QUICK = {*list(CASES)[::4], *(name for name in CASES if name.startswith("config"))}


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=() if n in QUICK else pytest.mark.slow) for n in CASES]
)
def test_trial(name, template, tmp_path):
    check(CASES[name], template, tmp_path / "world")
