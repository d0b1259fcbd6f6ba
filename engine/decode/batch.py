"""The rows that are decoded together, and their places in the cache.

    columns   0 ... | start ......... end | ...
    row 0           |      prompt, new    |
    row 1           |  longer prompt, new |
    row 2           |          prompt     |

Every row's newest token is in the same column, the edge. It moves on by one in
each step, and columns that no row uses any more are left behind it. When the
edge comes to the end of the memory, what is used is moved back to its start.
Rows are kept together: the last takes the place of one that leaves.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from engine.cache.budget import CacheBudget, CacheExtent, Extent
from engine.cache.memory import CacheMemory
from engine.cache.transformers_cache import (
    NOWHERE,
    Moving,
    Place,
    cache_at,
    keep_states,
    show_states,
    with_cross_states,
)
from engine.decode.forward import ForwardCalls
from engine.decode.row import Row

Forward = Callable[[], torch.Tensor]


class Batch:
    """Rows with their cache; `joining` rows come in with the step that is being run."""

    def __init__(
        self,
        calls: ForwardCalls,
        own: CacheMemory,
        cross: CacheMemory | None,
        budget: CacheBudget,
        start_token: int,
    ) -> None:
        self.rows: list[Row] = []
        self._calls = calls
        self._own = own
        self._cross = cross
        self._budget = budget
        self._start_token = start_token
        self._edge = 0
        self._extent = CacheExtent()
        self._joining: list[Row] = []
        # One for all decode passes; only the place that it works at changes.
        self._decoding = Moving(NOWHERE)
        self._reading = Moving(NOWHERE) if cross is not None else None
        self._decode_cache = cache_at(own, self._decoding)
        if cross is not None and self._reading is not None:
            self._decode_cache = with_cross_states(
                self._decode_cache, cache_at(cross, self._reading), is_filled=True
            )

    @property
    def allocated_bytes(self) -> int:
        """Bytes of the cache on the device."""
        return self._own.allocated_bytes + (self._cross.allocated_bytes if self._cross else 0)

    def make_room(
        self,
        joining: Sequence[Row],
        *,
        reserved_rows: int,
        widest: Extent,
        held_bytes: int,
        most_rows: int,
    ) -> None:
        """Have room for a step of the rows there are and those that join in it.

        Args:
            joining: Rows that join, in the order in which they get their places.
            reserved_rows: Rows there may be before any of them leaves.
            widest: Extent that holds each row.
            held_bytes: Bytes that are held beside the cache.
            most_rows: Upper bound on rows.
        """
        self._joining = list(joining)
        longest = max((len(row.tokens) for row in joining), default=1)
        has_shape = (
            reserved_rows <= self._extent.rows
            and widest.tokens <= self._extent.columns
            and widest.source_tokens <= self._extent.source_columns
        )
        budget = self._budget.bytes
        is_over = budget is not None and (
            self._budget.cache_bytes(self._extent) + held_bytes > budget
        )
        extent = self._extent
        if not has_shape or is_over:
            extent = self._budget.extent_for(
                reserved_rows, widest, most_rows=most_rows, held_bytes=held_bytes
            )
        if extent != self._extent or not longest <= self._edge + 1 <= extent.columns:
            self._move(extent, edge=max(self._width, longest - 1))

    def decoding(self) -> Forward:
        """The pass that gives each row its next token; there must be rows."""
        cached = [row.cached_tokens for row in self.rows]
        tokens = [row.tokens[-1] for row in self.rows]
        sources = [len(row.source_tokens) for row in self.rows]
        self._decoding.place = Place(
            rows=slice(0, len(cached)),
            columns=slice(self._edge - max(cached), self._edge),
            new_columns=slice(self._edge, self._edge + 1),
        )
        if self._reading is not None:
            self._reading.place = Place(
                rows=slice(0, len(cached)),
                columns=slice(0, max(sources)),
                new_columns=slice(max(sources), max(sources)),
            )
        if self._own.shape.has_states:
            show_states(self._decode_cache, self._own, len(cached))
        return lambda: self._calls.decode(tokens, cached, self._decode_cache, sources)

    def starting(self, first: int, count: int) -> Forward:
        """The pass that prefills some of the joining rows, and gives their first tokens."""
        rows = self._joining[first : first + count]
        begin = len(self.rows) + first
        edge = self._edge + 1
        longest = max(len(row.tokens) for row in rows)
        place = Place(
            rows=slice(begin, begin + count),
            columns=slice(edge - longest, edge - longest),
            new_columns=slice(edge - longest, edge),
        )
        cache = cache_at(self._own, Moving(place))
        if self._cross is None:
            return lambda: self._prefill([row.tokens for row in rows], cache, place.rows)
        states = [row.states for row in rows]
        written = Place(
            rows=place.rows,
            columns=slice(0, 0),
            new_columns=slice(0, max(len(each) for each in states)),
        )
        both = with_cross_states(cache, cache_at(self._cross, Moving(written)), is_filled=False)
        return lambda: self._calls.start(states, self._start_token, both)

    def take_in(self, place: int, cache: Any) -> None:
        """Copy what a joining row's own cache holds to its place; before step_over()."""
        tokens = len(self._joining[place].tokens)
        row = slice(len(self.rows) + place, len(self.rows) + place + 1)
        columns = slice(self._edge + 1 - tokens, self._edge + 1)
        for layer, states in enumerate(cache.layers):
            if states.keys is not None:
                self._own.write(layer, row, columns, states.keys, states.values)

    def step_over(self) -> None:
        """The step's passes are done: the edge moves on, and joining rows are there."""
        for row in self.rows:
            row.cached_tokens += 1
        for row in self._joining:
            row.cached_tokens = len(row.tokens)
            row.states = None
        self.rows += self._joining
        self._joining = []
        self._edge += 1

    def drop(self, is_leaving: Callable[[Row], bool]) -> list[Row]:
        """Take out the rows of which that is true."""
        left = []
        for place in range(len(self.rows) - 1, -1, -1):
            if not is_leaving(self.rows[place]):
                continue
            left.append(self.rows[place])
            last = self.rows.pop()
            if place < len(self.rows):
                self._copy(last, len(self.rows), place)
                self.rows[place] = last
        return left

    def clear(self) -> list[Row]:
        """Take all rows out, and give their memory back."""
        rows = [*self.rows, *self._joining]
        self.rows, self._joining = [], []
        self._edge, self._extent = 0, CacheExtent()
        self._own.release()
        if self._cross is not None:
            self._cross.release()
        return rows

    def _prefill(self, prompts: Sequence[list[int]], cache: Any, rows: slice) -> torch.Tensor:
        logits = self._calls.prefill(prompts, cache)
        if self._own.shape.has_states:
            keep_states(cache, self._own, rows)
        return logits

    @property
    def _width(self) -> int:
        return max((row.cached_tokens for row in self.rows), default=0)

    def _copy(self, row: Row, source: int, target: int) -> None:
        self._own.copy_row(source, target, slice(self._edge - row.cached_tokens, self._edge))
        if self._cross is not None:
            self._cross.copy_row(source, target, slice(0, len(row.source_tokens)))

    def _move(self, extent: CacheExtent, *, edge: int) -> None:
        width = self._width
        self._own.reshape(
            rows=extent.rows,
            columns=extent.columns,
            kept_rows=len(self.rows),
            kept=slice(self._edge - width, self._edge),
            start=edge - width,
        )
        if self._cross is not None and (extent.rows, extent.source_columns) != (
            self._extent.rows,
            self._extent.source_columns,
        ):
            sources = max((len(row.source_tokens) for row in self.rows), default=0)
            self._cross.reshape(
                rows=extent.rows,
                columns=extent.source_columns,
                kept_rows=len(self.rows),
                kept=slice(0, sources),
                start=0,
            )
        self._edge, self._extent = edge, extent
