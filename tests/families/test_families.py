"""docs/models.md says of each family what holds for it."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.families.checkpoints import FAMILIES, Family
from tests.families.checks import report_of
from tests.families.page import PAGE

# The four of the mission first, and as many beside them as make the promise of "any model" one.
FEWEST = 45
_TABLE = PAGE.read_text(encoding="utf-8").partition("| family |")[2]
_LINES = [line for line in _TABLE.splitlines()[2:] if line.startswith("| ")]


# Counting lines would double the time, and other tests count the same ones.
@pytest.mark.no_cover
@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
def test_the_table_says_what_holds(family: Family, tmp_path: Path) -> None:
    report = report_of(family, tmp_path)
    # given: what is no, is no because the family is refused
    assert "no" not in report.line().split(" | ") or report.resident == "no"
    assert report.line() in _LINES


def test_the_table_has_the_families_that_are_looked_at_and_no_others() -> None:
    names = [line.split(" | ")[0].removeprefix("| ") for line in _LINES]
    assert names == [family.name for family in FAMILIES]


def test_there_are_enough_of_them_that_run() -> None:
    running = [line for line in _LINES if line.split(" | ")[1] == "yes"]
    assert len(running) >= FEWEST
