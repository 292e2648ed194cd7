"""Commands in a hostile world: each ends as documented, says why, and loses nothing."""

import cases_predict
import pytest
from trial import check

CASES = {
    f"{group}: {case.name}": case
    for group, cases in {"predict": cases_predict.CASES}.items()
    for case in cases
}


@pytest.mark.parametrize("name", CASES)
def test_trial(name, template, tmp_path):
    check(CASES[name], template, tmp_path / "world")
