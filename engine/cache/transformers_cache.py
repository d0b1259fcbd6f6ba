"""transformers' Cache interface over our own memory.

A stock model is given one of these caches and knows nothing of rows that come
and go. One forward pass either decodes, and then every layer adds a column and
reads all of its rows' columns, or prefills, and then every layer writes what
it computes to the place that the new rows were given and attends to just that.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from transformers import Cache, EncoderDecoderCache
from transformers.cache_utils import CacheLayerMixin

from engine.cache.memory import CacheMemory


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where one forward pass reads and writes.

    Attributes:
        rows: Of the store.
        columns: That are there before the pass, and are attended to.
        new_columns: That the pass writes.
    """

    rows: slice
    columns: slice
    new_columns: slice

    @property
    def past(self) -> int:
        return int(self.columns.stop - self.columns.start)


NOWHERE = Place(rows=slice(0, 0), columns=slice(0, 0), new_columns=slice(0, 0))


@dataclass
class Moving:
    """A place that is another one in the next pass."""

    place: Place


class _Layer(CacheLayerMixin):  # type: ignore[misc]
    """One layer's part of a place in a store."""

    is_sliding = False

    def __init__(self, store: CacheMemory, index: int, at: Moving) -> None:
        self._store = store
        self._index = index
        self._at = at
        self.is_initialized = True

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        pass

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *_args: Any, **_options: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Keep the new states [R, H, T, D] and return what attention is to see."""
        place = self._at.place
        self._store.write(self._index, place.rows, place.new_columns, key_states, value_states)
        if place.past == 0:
            return key_states, value_states
        return self.keys, self.values

    @property
    def keys(self) -> torch.Tensor:
        return self._store.keys(self._index, self._at.place.rows, self._seen)

    @property
    def values(self) -> torch.Tensor:
        return self._store.values(self._index, self._at.place.rows, self._seen)

    @property
    def _seen(self) -> slice:
        return slice(self._at.place.columns.start, self._at.place.new_columns.stop)

    def get_seq_length(self) -> int:
        return self._at.place.past

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self._at.place.past + query_length, 0

    def get_max_length(self) -> int:
        return -1


def cache_at(store: CacheMemory, at: Moving) -> Any:
    """A decoder's cache whose layers work at this place, wherever that is by then."""
    return Cache(layers=[_Layer(store, index, at) for index in range(store.layers)])


def with_cross_states(own: Any, cross: Any, *, is_filled: bool) -> Any:
    """An encoder-decoder's cache; is_filled says that the cross states are there already."""
    both = EncoderDecoderCache(own, cross)
    both.is_updated = dict.fromkeys(range(len(cross)), is_filled)
    return both
