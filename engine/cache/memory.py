"""The memory of a KV cache: one block of rows and columns per layer."""

from __future__ import annotations

from dataclasses import dataclass
from threading import Lock
from typing import Any

import torch

from engine.cache.format import CacheFormat


@dataclass(frozen=True, kw_only=True)
class CacheShape:
    """What a configuration says of one kind of cached states.

    Attributes:
        layers: That cache something.
        heads: Of keys and of values.
        head_size: Numbers in a head.
    """

    layers: int
    heads: int
    head_size: int

    def token_bytes(self, form: CacheFormat, dtype: torch.dtype) -> int:
        """Of one token in all layers, keys and values together."""
        return 2 * self.layers * self.heads * form.bytes_per_head(self.head_size, dtype)


def cache_shape_of(config: Any) -> CacheShape:
    """The shape of a decoder's cache, self and cross alike, from a transformers configuration."""
    decoder = config.get_text_config(decoder=True)
    heads = decoder.num_attention_heads
    kv_heads = getattr(decoder, "num_key_value_heads", None) or heads
    if getattr(decoder, "multi_query", False):
        kv_heads = 1
    head_size = getattr(decoder, "head_dim", None) or getattr(decoder, "d_kv", None)
    layers = getattr(decoder, "num_decoder_layers", None) or decoder.num_hidden_layers
    return CacheShape(
        layers=layers, heads=kv_heads, head_size=head_size or decoder.hidden_size // heads
    )


class CacheMemory:
    """Keys and values of all layers, [rows, heads, columns, head size] each.

    Memory is taken when a layer is first written to, from the states' own
    shape. Columns that were never written are zero: they are masked, and a
    masked zero does no harm where a masked NaN would.
    """

    def __init__(self, shape: CacheShape, form: CacheFormat, device: torch.device) -> None:
        self.rows = 0
        self.columns = 0
        self._form = form
        self._device = device
        # By layer: the parts of the keys, then those of the values.
        self._layers: list[tuple[torch.Tensor, ...]] = [()] * shape.layers
        self._dtype = torch.float32
        # Forward passes of one step may run on threads of their own.
        self._allocating = Lock()

    @property
    def layers(self) -> int:
        return len(self._layers)

    @property
    def allocated_bytes(self) -> int:
        return sum(part.numel() * part.element_size() for layer in self._layers for part in layer)

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
            self._allocate(layer, packed, keys.dtype)
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

    def copy_row(self, source: int, target: int, columns: slice) -> None:
        """Give a row's columns to another."""
        for layer in self._layers:
            for part in layer:
                part[target, :, columns] = part[source, :, columns]

    def reshape(self, *, rows: int, columns: int, kept_rows: int, kept: slice, start: int) -> None:
        """Change the shape, and move what is kept, a layer at a time.

        Args:
            rows: To have room for.
            columns: The same.
            kept_rows: The first so many keep their states.
            kept: The columns that they keep.
            start: Where those begin afterwards.
        """
        target = slice(start, start + kept.stop - kept.start)
        in_place = (rows, columns) == (self.rows, self.columns)
        self.rows, self.columns = rows, columns

        def moved(part: torch.Tensor) -> torch.Tensor:
            states = part[:kept_rows, :, kept]
            if in_place:
                # A copy, because the old place and the new one may overlap.
                states = states.clone()
            else:
                part = part.new_zeros(rows, part.shape[1], columns, part.shape[3])
            part[:kept_rows, :, target] = states
            return part

        for index, layer in enumerate(self._layers):
            self._layers[index] = tuple(moved(part) for part in layer)

    def release(self) -> None:
        """Give all memory back."""
        self.rows = self.columns = 0
        self._layers = [()] * len(self._layers)

    def _allocate(self, layer: int, packed: tuple[torch.Tensor, ...], dtype: torch.dtype) -> None:
        with self._allocating:
            if self._layers[layer]:
                return
            self._dtype = dtype
            self._layers[layer] = tuple(
                torch.zeros(
                    (self.rows, part.shape[1], self.columns, part.shape[3]),
                    dtype=part.dtype,
                    device=self._device,
                )
                for part in packed
            )

    def _read(self, parts: tuple[torch.Tensor, ...], rows: slice, columns: slice) -> torch.Tensor:
        return self._form.unpack([part[rows, :, columns] for part in parts], self._dtype)
