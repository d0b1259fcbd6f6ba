"""docs/reference.md is what the code says today."""

from __future__ import annotations

import re

import pytest

from docs.reference import meanings
from docs.reference.commands import commands
from docs.reference.page import PAGE, failures, page
from jobs.prompts.formats import READERS
from jobs.results.formats import FORMATS


@pytest.fixture(scope="module")
def text() -> str:
    return PAGE.read_text(encoding="utf-8")


def test_the_page_is_what_the_code_says_today(text: str) -> None:
    assert text == page(text), "make it again: make reference"


def test_every_command_has_a_section(text: str) -> None:
    sections = re.findall(r"^### `tgp-jobs (.+)`$", text, re.MULTILINE)
    assert sections == list(commands())


@pytest.mark.parametrize("name", [*READERS, *FORMATS])
def test_every_format_of_prompts_and_of_results_is_named(text: str, name: str) -> None:
    assert re.search(rf"`\.?{name}`", text)


def test_a_page_that_lacks_a_part_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="expected each of"):
        page(text.replace("<!-- made: settings -->", ""))


def test_a_name_of_the_code_that_has_no_words_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(meanings.FAILURES, "out_of_memory")
    with pytest.raises(ValueError, match="out_of_memory"):
        failures()
