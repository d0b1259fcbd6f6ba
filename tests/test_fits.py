"""docs/fits.md is what the planner says, and says what it is."""

from __future__ import annotations

import pytest

from benchmarks.fits import BOXES, MODELS, PAGE, page


@pytest.fixture(scope="module")
def text() -> str:
    return PAGE.read_text(encoding="utf-8")


def test_the_page_is_what_the_planner_says_today(text: str) -> None:
    assert text == page(), "make it again: python -m benchmarks.fits --write"


def test_every_model_is_planned_for_every_box(text: str) -> None:
    assert [text.count(f"| `{model}` |") for model in MODELS] == [len(BOXES)] * len(MODELS)


def test_nobody_can_take_the_figures_for_measurements(text: str) -> None:
    assert "**Everything on this page is predicted, not measured.**" in text
