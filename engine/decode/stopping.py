"""The text of tokens, and stop strings, which may span tokens."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

# What a byte-level tokenizer decodes an unfinished UTF-8 sequence to.
_REPLACEMENT_CHARACTER = "\ufffd"
# How many tokens of a prompt are tried as context, before all of them.
_CONTEXT_TOKENS = (8, 64, 512)


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


def decoding_context(tokenizer: Any, prompt_tokens: Sequence[int]) -> tuple[int, ...]:
    """The last tokens of a prompt, enough to decode what follows as after all of it.

    A tokenizer may drop a space at the start of a text, and bytes of a
    character that are decoded without its first ones are no character, so the
    context shows some text and begins with a whole character.
    """
    for count in _CONTEXT_TOKENS:
        if count >= len(prompt_tokens):
            break
        context = tuple(prompt_tokens[-count:])
        if _can_begin(tokenizer, context):
            return context
    return tuple(prompt_tokens)


def _can_begin(tokenizer: Any, token_ids: Sequence[int]) -> bool:
    """Whether what follows these tokens decodes as it does after more of them."""
    text = decode_text(tokenizer, token_ids)
    return bool(text) and not text.startswith(_REPLACEMENT_CHARACTER)


def text_of_new(tokenizer: Any, before: Sequence[int], new: Sequence[int]) -> str:
    """The text that new tokens add to the text of the tokens before them.

    Bytes at the end of `before` that are no character yet belong to the new text.
    """
    known = decode_text(tokenizer, before)
    whole = decode_text(tokenizer, [*before, *new])
    for prefix in (known, known.rstrip(_REPLACEMENT_CHARACTER)):
        if whole.startswith(prefix):
            return whole[len(prefix) :]
    # With byte fallback, an invalid byte makes the characters that are written
    # in bytes just before it unreadable as well; those before stay as they were.
    return decode_text(tokenizer, new)


class StopStringWatch:
    """Watches one row's new tokens for its stop strings.

    Decoding everything at every step would cost the square of the length, so
    only the last few tokens are decoded, always together with the ones before
    them. A find is confirmed on the whole text, which is what gets cut.

    Attributes:
        context: Last tokens of the prompt; decoded before the new ones.
    """

    def __init__(
        self, tokenizer: Any, stop: Sequence[str], prompt_tokens: Sequence[int] = ()
    ) -> None:
        """Watch for any of the stop strings.

        Args:
            tokenizer: A transformers tokenizer.
            stop: Stop strings; empty ones are ignored.
            prompt_tokens: Tokens that the new ones continue; none for an
                encoder-decoder, whose completion is a text of its own.
        """
        self._tokenizer = tokenizer
        self._stop = tuple(string for string in stop if string)
        self._tail_characters = max((len(string) for string in self._stop), default=0)
        self.context = decoding_context(tokenizer, prompt_tokens)
        self.restart()

    def restart(self) -> None:
        """Forget every token."""
        self._before = self.context  # tokens just before those not yet in the tail
        self._read = 0  # new tokens before it are in the tail already
        self._tail = ""

    def text(self, token_ids: Sequence[int]) -> str:
        """The text of new tokens, as they continue the prompt."""
        return text_of_new(self._tokenizer, self.context, token_ids)

    def is_found(self, token_ids: Sequence[int]) -> bool:
        """Whether a stop string stands in the text of all new tokens so far."""
        if not self._stop:
            return False
        unread = token_ids[self._read :]
        added = text_of_new(self._tokenizer, self._before, unread)
        window = self._tail + added
        if added and not added.endswith(_REPLACEMENT_CHARACTER):
            joined = (*self._before, *unread)
            self._before = tuple(unread) if _can_begin(self._tokenizer, unread) else joined
            self._read = len(token_ids)
            self._tail = window[-self._tail_characters :]
        return (
            cut_at_stop(window, self._stop)[1] and cut_at_stop(self.text(token_ids), self._stop)[1]
        )
