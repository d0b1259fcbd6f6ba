"""The memory of a cache: keys, values and states of all rows, a block per layer."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

from engine.cache.format import CacheFormat
from engine.cache.shape import CacheShape

# By "conv_states" or "recurrent_states" and transformers' number of the state.
States = dict[tuple[str, int], torch.Tensor]
STATE_NAMES = ("conv_states", "recurrent_states")


class CacheMemory:
    """Keys and values of all layers, [rows, heads, columns, head size] each, and states.

    Memory is taken when a layer is first written to, from the states' own
    shape. Columns that were never written are zero: they are masked, and a
    masked zero does no harm where a masked NaN would.
    """

    def __init__(self, shape: CacheShape, form: CacheFormat, device: torch.device) -> None:
        self.shape = shape
        self.rows = 0
        self.columns = 0
        self._form = form
        self._device = device
        self._dtype = torch.float32
        self.release()

    @property
    def allocated_bytes(self) -> int:
        """Bytes of all that is allocated."""
        states = (each for layer in self._states for each in layer.values())
        parts = (part for layer in self._layers for part in layer)
        return sum(each.numel() * each.element_size() for each in (*parts, *states))

    def write(
        self,
        layer: int,
        rows: slice,
        columns: slice,
        keys: torch.Tensor,
        values: torch.Tensor,
    ) -> None:
        """Keep keys and values, [R, H, C, D] each, for these rows and columns."""
        packed = (*self._form.pack(keys), *self._form.pack(values))
        if not self._layers[layer]:
            self._dtype = keys.dtype
            self._layers[layer] = tuple(
                self._zeros(part, self.rows, part.shape[1], self.columns, part.shape[3])
                for part in packed
            )
        for kept, part in zip(self._layers[layer], packed, strict=True):
            kept[rows, :, columns] = part

    def keys(self, layer: int, rows: slice, columns: slice) -> torch.Tensor:
        """[R, H, C, D]: a view, or a copy made float."""
        parts = self._layers[layer]
        return self._read(parts[: len(parts) // 2], rows, columns)

    def values(self, layer: int, rows: slice, columns: slice) -> torch.Tensor:
        """[R, H, C, D]: a view, or a copy made float."""
        parts = self._layers[layer]
        return self._read(parts[len(parts) // 2 :], rows, columns)

    def write_states(self, layer: int, rows: slice, cached: Any) -> None:
        """Keep the states, [R, ...] each, of a layer of transformers' cache for these rows."""
        for name, index, states in _states_in(cached):
            kept = self._states[layer]
            if (name, index) not in kept:
                kept[name, index] = self._zeros(states, self.rows, *states.shape[1:])
            kept[name, index][rows] = states

    def show_states(self, layer: int, rows: int, cached: Any) -> None:
        """Make a layer of transformers' cache work on the states of the first rows."""
        for (name, index), states in self._states[layer].items():
            getattr(cached, name)[index] = states[:rows]
            getattr(cached, f"is_{name}_initialized")[index] = True
            cached.has_previous_state[index] = True
            if name == "conv_states":
                cached.conv_kernel_size[index] = states.shape[-1]

    def copy_row(self, source: int, target: int, columns: slice) -> None:
        """Give a row's columns and states to another."""
        for layer in self._layers:
            for part in layer:
                part[target, :, columns] = part[source, :, columns]
        for each in self._states:
            for states in each.values():
                states[target] = states[source]

    def reshape(self, *, rows: int, columns: int, kept_rows: int, kept: slice, start: int) -> None:
        """Change the shape, and move what is kept, a layer at a time.

        Args:
            rows: Rows to have room for.
            columns: Columns to have room for.
            kept_rows: The first so many rows keep their contents.
            kept: The columns that they keep.
            start: Where those begin afterwards.
        """
        target = slice(start, start + kept.stop - kept.start)
        in_place = (rows, columns) == (self.rows, self.columns)
        more_rows = rows != self.rows
        self.rows, self.columns = rows, columns

        def moved(part: torch.Tensor) -> torch.Tensor:
            states = part[:kept_rows, :, kept]
            if in_place:
                # A copy, because the old place and the new one may overlap.
                states = states.clone()
            else:
                part = self._zeros(part, rows, part.shape[1], columns, part.shape[3])
            part[:kept_rows, :, target] = states
            return part

        for index, layer in enumerate(self._layers):
            self._layers[index] = tuple(moved(part) for part in layer)
        for each in self._states if more_rows else ():
            for key, states in each.items():
                each[key] = self._zeros(states, rows, *states.shape[1:])
                each[key][:kept_rows] = states[:kept_rows]

    def release(self) -> None:
        """Give all memory back."""
        self.rows = self.columns = 0
        # By layer: the parts of the keys, then those of the values.
        self._layers: list[tuple[torch.Tensor, ...]] = [()] * len(self.shape.layers)
        self._states: list[States] = [{} for _ in self.shape.layers]

    def _zeros(self, like: torch.Tensor, *shape: int) -> torch.Tensor:
        return torch.zeros(shape, dtype=like.dtype, device=self._device)

    def _read(self, parts: tuple[torch.Tensor, ...], rows: slice, columns: slice) -> torch.Tensor:
        return self._form.unpack([part[rows, :, columns] for part in parts], self._dtype)


def _states_in(cached: Any) -> Iterator[tuple[str, int, torch.Tensor]]:
    for name in STATE_NAMES:
        for index, states in getattr(cached, name).items():
            if states is not None:
                yield name, index, states
