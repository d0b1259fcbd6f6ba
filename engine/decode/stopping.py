"""Stop strings, which may span tokens, and the text of tokens."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

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
        self.restart()

    def restart(self) -> None:
        """Forget every token."""
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
