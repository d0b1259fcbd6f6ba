"""When a row is finished: end of sequence, a stop string, or its length.

generate() knows one length for a whole batch; here every row has its own, and
its own stop strings, which may span tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch

FinishReason = Literal["stop", "length"]


# What a byte-level tokenizer decodes an unfinished UTF-8 sequence to.
_REPLACEMENT_CHARACTER = "\ufffd"


def cut_at_stop(text: str, stop: Sequence[str]) -> tuple[str, bool]:
    """The text before the earliest stop string, and whether there was one."""
    found = [place for place in (text.find(string) for string in stop if string) if place >= 0]
    return (text[: min(found)], True) if found else (text, False)


def decode_text(tokenizer: Any, token_ids: Sequence[int]) -> str:
    """Tokens as text, without special tokens and without tidied spaces."""
    text: str = tokenizer.decode(
        list(token_ids), skip_special_tokens=True, clean_up_tokenization_spaces=False
    )
    return text


class StopStringWatch:
    """Watches one row's new tokens for its stop strings.

    Decoding everything at every step would cost the square of the length, so
    only the last few tokens are decoded, always together with the ones before
    them, because a tokenizer may write a token differently at the start of a
    text. A find is confirmed on the whole text, which is what gets cut.
    """

    def __init__(self, tokenizer: Any, stop: Sequence[str]) -> None:
        self._tokenizer = tokenizer
        self._stop = tuple(string for string in stop if string)
        self._tail_characters = max((len(string) for string in self._stop), default=0)
        self._context_start = 0  # tokens before it are not decoded again
        self._read = 0  # tokens before it are in the tail already
        self._tail = ""

    def is_found(self, token_ids: Sequence[int]) -> bool:
        """Whether a stop string stands in the text of all new tokens so far."""
        if not self._stop:
            return False
        known = decode_text(self._tokenizer, token_ids[self._context_start : self._read])
        whole = decode_text(self._tokenizer, token_ids[self._context_start :])
        if len(whole) <= len(known) or whole.endswith(_REPLACEMENT_CHARACTER):
            return False
        window = self._tail + whole[len(known) :]
        self._context_start, self._read = self._read, len(token_ids)
        self._tail = window[-self._tail_characters :]
        if not cut_at_stop(window, self._stop)[1]:
            return False
        return cut_at_stop(decode_text(self._tokenizer, token_ids), self._stop)[1]


@dataclass(kw_only=True)
class RowProgress:
    """One row while it is generated; finish_reason is None until it is finished.

    eos is what ends it, where that is not what ends the others of its batch.
    """

    max_new_tokens: int
    watch: StopStringWatch
    eos: frozenset[int] | None = None
    token_ids: list[int] = field(default_factory=list)
    finish_reason: FinishReason | None = None

    def append(self, token_id: int, eos_token_ids: frozenset[int]) -> None:
        """Take the next token and see whether it is the last."""
        self.token_ids.append(token_id)
        ends = eos_token_ids if self.eos is None else self.eos
        if token_id in ends or self.watch.is_found(self.token_ids):
            self.finish_reason = "stop"
        elif len(self.token_ids) >= self.max_new_tokens:
            self.finish_reason = "length"


class RowStopper:
    """A stopping criterion with an end of its own for every row.

    Asks should_stop() before each further decode step and then ends every
    row; rows that were not finished keep a finish_reason of None.
    """

    def __init__(
        self,
        rows: Sequence[RowProgress],
        *,
        eos_token_ids: Sequence[int],
        should_stop: Callable[[], bool],
    ) -> None:
        self.rows = rows
        self.was_interrupted = False
        self._eos_token_ids = frozenset(eos_token_ids)
        self._should_stop = should_stop

    def __call__(self, input_ids: torch.Tensor, scores: object, **_kwargs: object) -> torch.Tensor:
        """Which rows are finished.

        Args:
            input_ids: int64 [B, S], the last column the newest tokens.
            scores: Not looked at.

        Returns:
            bool [B].
        """
        newest = input_ids[:, -1].tolist()
        for row, token_id in zip(self.rows, newest, strict=True):
            if row.finish_reason is None:
                row.append(token_id, self._eos_token_ids)
        finished = [row.finish_reason is not None for row in self.rows]
        if not all(finished) and self._should_stop():
            self.was_interrupted = True
            finished = [True] * len(finished)
        return torch.tensor(finished, dtype=torch.bool, device=input_ids.device)
