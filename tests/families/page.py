"""docs/models.md: the words around the table of families."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from tests.families.checks import Report

PAGE = Path(__file__).parents[2] / "docs" / "models.md"
_HEAD = """\
# Models that run

A worker runs the causal and encoder-decoder models of transformers whose layers cache keys
and values, or states of one size. This page is made by the tests (`make models`), from a tiny
checkpoint of each family with random weights.

| column | what was looked at |
|---|---|
| resident | it loads as int8 and generates, with all weights in memory |
| streamed | it says the same while its layers are read from disk in every pass |
| int8 | share of its layers' matrices that is int8; the rest is float |
| batch | each prompt says in a batch of prompts of other lengths what it says alone (`w8a16`) |
| transformers | those tokens are the ones of transformers' `generate()` on the same weights |
| logprobs, echo, chat | the requests that ask for them get them |

| family | resident | streamed | int8 | batch | transformers | logprobs | echo | chat | remark |
|---|---|---|---|---|---|---|---|---|---|
"""


def page_of(reports: Sequence[Report]) -> str:
    """The whole page."""
    return _HEAD + "".join(f"{report.line()}\n" for report in reports)
