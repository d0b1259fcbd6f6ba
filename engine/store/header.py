"""The header of a safetensors file: written for a store, and checked when one is read.

The format is https://github.com/huggingface/safetensors#format.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import prod
from typing import Any

import torch

from engine.layout.blocks import TensorLayout

SUFFIX = ".safetensors"


# The tensors' data starts on a page, for reads that go around the page cache.
DATA_ALIGNMENT_BYTES = 4096


DTYPE_NAMES = {
    torch.bool: "BOOL",
    torch.uint8: "U8",
    torch.int8: "I8",
    torch.int16: "I16",
    torch.int32: "I32",
    torch.int64: "I64",
    torch.bfloat16: "BF16",
    torch.float16: "F16",
    torch.float32: "F32",
    torch.float64: "F64",
}


def safetensors_header(tensors: tuple[TensorLayout, ...]) -> bytes:
    """The length and the JSON that come before the tensors, padded with spaces."""
    entries: dict[str, object] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for tensor in tensors:
        entries[tensor.name] = {
            "dtype": DTYPE_NAMES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [offset, offset + tensor.bytes],
        }
        offset += tensor.bytes
    text = json.dumps(entries, separators=(",", ":")).encode()
    padding = -(8 + len(text)) % DATA_ALIGNMENT_BYTES
    return (len(text) + padding).to_bytes(8, "little") + text + b" " * padding


# More than any file has; what is smaller can be a shape and an offset to torch.
_MOST_BYTES = 2**60


DTYPES = {name: dtype for dtype, name in DTYPE_NAMES.items()}


@dataclass(frozen=True, kw_only=True)
class TensorPlace:
    """A tensor's bytes, from the start of its segment."""

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]
    offset: int

    @property
    def bytes(self) -> int:
        return prod(self.shape) * self.dtype.itemsize


def places_in(header: Mapping[str, Any]) -> Iterator[TensorPlace]:
    """Yield the place of each tensor that a file's header names.

    Raises:
        ValueError, KeyError, TypeError or AttributeError: It is no such header.
    """
    for name, entry in header.items():
        if name == "__metadata__":
            continue
        start, end = whole_numbers(entry["data_offsets"])
        place = TensorPlace(
            name=name,
            dtype=DTYPES[entry["dtype"]],
            shape=whole_numbers(entry["shape"]),
            offset=start,
        )
        if start + place.bytes != end:
            raise ValueError(f"the offsets of {name} are not those of its shape")
        if place.offset % place.dtype.itemsize:
            raise ValueError(f"{name} is not aligned")
        yield place


def whole_numbers(values: Any) -> tuple[int, ...]:
    """Check sizes that were read from JSON, such as a shape.

    Raises:
        ValueError: One is negative, or no whole number that a file could have.
    """
    if not isinstance(values, list) or any(
        type(value) is not int or not 0 <= value < _MOST_BYTES for value in values
    ):
        raise ValueError(f"{str(values)[:100]} are no sizes")
    return tuple(values)


def follow_one_another(places: tuple[TensorPlace, ...]) -> bool:
    """Whether the tensors fill their part of the file, without a gap and without sharing."""
    end = 0
    for place in sorted(places, key=lambda place: (place.offset, place.bytes)):
        if place.offset != end:
            return False
        end += place.bytes
    return True
