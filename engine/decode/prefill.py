"""Cutting prompts into forward passes of bounded size."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from engine.decode.row import Row


@dataclass(kw_only=True, eq=False)
class ChunkedPrompt:
    """A row whose prompt is longer than one pass, with a cache of its own meanwhile."""

    row: Row
    cache: Any
    read_tokens: int = 0

    @property
    def cache_bytes(self) -> int:
        """Of the cache of its own."""
        return sum(
            states.numel() * states.element_size()
            for layer in self.cache.layers
            for states in (layer.keys, layer.values)
        )

    def next_part(self, at_most: int) -> tuple[int, ...]:
        """The tokens that go through the model next."""
        return self.row.decoder_tokens[self.read_tokens : self.read_tokens + at_most]

    def is_last(self, at_most: int) -> bool:
        return len(self.row.decoder_tokens) - self.read_tokens <= at_most


def passes_of(lengths: Sequence[int], at_most: int) -> list[int]:
    """How many neighbours go through the model together, pass by pass.

    Args:
        lengths: In tokens; neighbours are padded to the longest of them.
        at_most: Tokens in a pass, padding included, unless one alone has more.
    """
    counts: list[int] = []
    longest = 0
    for length in lengths:
        longest = max(longest, length)
        if counts and longest * (counts[-1] + 1) <= at_most:
            counts[-1] += 1
        else:
            counts.append(1)
            longest = length
    return counts
