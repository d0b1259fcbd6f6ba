"""Rows made by hand, for tests of what happens to one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from engine.cache.budget import Extent
from engine.decode.admission import Reservation
from engine.decode.row import ChosenToken, Row, RowTimes, seeded
from engine.decode.stopping import StopStringWatch
from engine.interface import GenerationRequest, SamplingParameters


class LetterTokenizer:
    """Token n is pieces[n]."""

    def __init__(self, *pieces: str) -> None:
        self.pieces = pieces

    def decode(self, token_ids: Sequence[int], **_options: object) -> str:
        return "".join(self.pieces[token] for token in token_ids)


def row_of(
    tokens: Sequence[int] = (0,),
    *,
    end_tokens: Sequence[int] = (),
    tokenizer: Any = None,
    **parameters: Any,
) -> Row:
    """A row whose prompt is these tokens."""
    asked = SamplingParameters(**parameters)
    return Row(
        request=GenerationRequest(key=0, prompt="", parameters=asked),
        tokens=list(tokens),
        given_tokens=len(tokens),
        max_new_tokens=asked.max_new_tokens,
        end_tokens=frozenset(end_tokens),
        reservation=Reservation(extent=Extent(len(tokens) + asked.max_new_tokens)),
        watch=StopStringWatch(tokenizer or LetterTokenizer(*"abcdef"), asked.stop),
        times=RowTimes(taken=0.0),
        generator=seeded(asked.seed) if asked.temperature > 0 else None,
    )


def append(row: Row, *token_ids: int) -> list[bool]:
    """Give a row tokens, and say after each whether it is finished."""
    finished = []
    for token_id in token_ids:
        row.append(ChosenToken(token_id=token_id), 1.0)
        finished.append(row.is_finished)
    return finished
