"""Cutting prompts into forward passes of bounded size."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from engine.decode.row import Row


@dataclass(kw_only=True, eq=False)
class ChunkedPrompt:
    """A row whose prompt is longer than one pass, with a cache of its own meanwhile.

    Attributes:
        row: The row.
        cache: A transformers cache of what has been read.
        read_tokens: Number of tokens in that cache.
    """

    row: Row
    cache: Any
    read_tokens: int = 0

    @property
    def cache_bytes(self) -> int:
        """Bytes of the cache of its own."""
        return sum(
            states.numel() * states.element_size()
            for layer in self.cache.layers
            for states in (layer.keys, layer.values)
            if states is not None
        )

    def next_chunk(self, at_most: int) -> list[int]:
        """The tokens that go through the model next."""
        return self.row.tokens[self.read_tokens : self.read_tokens + at_most]

    def is_last(self, at_most: int) -> bool:
        """Whether the next chunk is the last."""
        return len(self.row.tokens) - self.read_tokens <= at_most


@dataclass(frozen=True, kw_only=True)
class Prefill:
    """The prompts that go through the model in one step.

    Attributes:
        whole: Rows whose prompts are read at once, in the order of their passes.
        counts: Number of rows in each of those passes.
        chunked: Prompts of which the next chunk is read.
        ending: Those of them that are read to the end, so that their rows join.
        tokens: Number of prompt tokens in the step.
    """

    whole: Sequence[Row]
    counts: Sequence[int]
    chunked: Sequence[ChunkedPrompt]
    ending: Sequence[ChunkedPrompt]
    tokens: int

    @property
    def joining(self) -> list[Row]:
        """Rows that are in the batch after the step."""
        return [*self.whole, *(each.row for each in self.ending)]


def passes_of(lengths: Sequence[int], at_most: int, *, may_pad: bool = True) -> list[int]:
    """How many neighbours go through the model together, pass by pass.

    Args:
        lengths: Tokens of each; neighbours are padded to the longest of them.
        at_most: Tokens in a pass, padding included, unless one alone has more.
        may_pad: Whether neighbours of different lengths may share a pass.
    """
    counts: list[int] = []
    longest = 0
    for before, length in zip((0, *lengths), lengths, strict=False):
        longest = max(longest, length)
        is_alike = may_pad or length == before
        if counts and is_alike and longest * (counts[-1] + 1) <= at_most:
            counts[-1] += 1
        else:
            counts.append(1)
            longest = length
    return counts
