"""transformers' Cache interface over our own memory.

A stock model is given one of these caches and knows nothing of rows that come
and go. One forward pass either decodes, and then every layer adds a column and
reads all of its rows' columns, or prefills, and then every layer writes what
it computes to the place that the new rows were given and attends to just that.
States of recurrent layers are views of the memory in a decode pass, and are
copied there after a prefill.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from transformers import Cache, EncoderDecoderCache, cache_utils
from transformers.cache_utils import CacheLayerMixin

from engine.cache.memory import CacheMemory
from engine.cache.shape import LayerShape


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where one forward pass reads and writes.

    Attributes:
        rows: Rows of the memory.
        columns: Columns that are there before the pass, and are attended to.
        new_columns: Columns that the pass writes.
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
    """One layer's keys and values at a place in the memory."""

    is_sliding = False

    def at(self, memory: CacheMemory, index: int, at: Moving) -> Any:
        """This layer, working there."""
        self._memory, self._index, self._at = memory, index, at
        self.is_initialized = True
        return self

    def lazy_initialization(self, *args: Any, **options: Any) -> None:
        if options:  # states, not keys and values
            super().lazy_initialization(*args, **options)

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *_args: Any, **_options: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Keep the new states [R, H, T, D] and return what attention is to see."""
        place = self._at.place
        self._memory.write(self._index, place.rows, place.new_columns, key_states, value_states)
        if place.past == 0:
            return key_states, value_states
        return self.keys, self.values

    @property
    def keys(self) -> torch.Tensor:
        """Keys that attention sees, [R, H, C, D]; cross attention reads them without update()."""
        return self._memory.keys(self._index, self._at.place.rows, self._seen)

    @keys.setter
    def keys(self, _nothing: None) -> None:
        """What transformers' own layers set when they are made."""

    @property
    def values(self) -> torch.Tensor:
        """Values that attention sees, [R, H, C, D]."""
        return self._memory.values(self._index, self._at.place.rows, self._seen)

    @values.setter
    def values(self, _nothing: None) -> None:
        """What transformers' own layers set when they are made."""

    @property
    def _seen(self) -> slice:
        return slice(self._at.place.columns.start, self._at.place.new_columns.stop)

    def get_seq_length(self) -> int:
        return self._at.place.past

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self._at.place.past + query_length, 0

    def get_max_length(self) -> int:
        return -1


@cache
def _both_class() -> Any:
    """A layer with keys and values at a place in the memory, and states."""
    # Made when it is needed: not every transformers has such layers.
    base = cache_utils.LinearAttentionAndFullAttentionLayer
    return type("_BothLayer", (_Layer, base), {})


def cache_at(memory: CacheMemory, at: Moving) -> Any:
    """A decoder's cache whose layers work at this place, wherever that is by then."""

    def layer(index: int, shape: LayerShape) -> Any:
        if shape.kind == "attention":
            return _Layer().at(memory, index, at)
        if shape.kind == "both":
            return _both_class()(number_of_states=shape.state_count).at(memory, index, at)
        if shape.kind == "states":
            return cache_utils.LinearAttentionLayer(number_of_states=shape.state_count)
        return cache_utils.DummyLayer()

    return Cache(layers=[layer(*each) for each in enumerate(memory.shape.layers)])


def show_states(cache: Any, memory: CacheMemory, rows: int) -> None:
    """Have a decode pass work on the states of the first rows."""
    for index, shape in enumerate(memory.shape.layers):
        if shape.has_states:
            memory.show_states(index, rows, cache.layers[index])


def keep_states(cache: Any, memory: CacheMemory, rows: slice) -> None:
    """Keep what a prefill left in a cache's layers, for these rows."""
    for index, shape in enumerate(memory.shape.layers):
        if shape.has_states:
            memory.write_states(index, rows, cache.layers[index])


def with_cross_states(own: Any, cross: Any, *, is_filled: bool) -> Any:
    """An encoder-decoder's cache; is_filled says that the cross states are there already."""
    both = EncoderDecoderCache(own, cross)
    both.is_updated = dict.fromkeys(range(len(cross)), is_filled)
    return both
