"""What one number of the KV cache is kept as: the model's own float, or int8."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, Protocol

import torch

CacheDtype = Literal["float", "int8"]


_LARGEST_INT8 = 127.0


_SCALE_DTYPE = torch.float32


class CacheFormat(Protocol):
    """How keys and values are kept between steps.

    A state tensor is [R, H, C, D]; it is kept as one or more parts that share
    its first three dimensions.
    """

    def pack(self, states: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """The parts of states, each [R, H, C, its own width]."""
        ...

    def unpack(self, parts: Sequence[torch.Tensor], dtype: torch.dtype) -> torch.Tensor:
        """States [R, H, C, D] of that dtype from their parts."""
        ...

    def bytes_per_head(self, head_size: int, dtype: torch.dtype) -> int:
        """Bytes of one token's keys, or values, in one head."""
        ...


class FloatFormat:
    """Keys and values as the model computes them."""

    def pack(self, states: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return (states,)

    def unpack(self, parts: Sequence[torch.Tensor], dtype: torch.dtype) -> torch.Tensor:
        return parts[0]

    def bytes_per_head(self, head_size: int, dtype: torch.dtype) -> int:
        return head_size * dtype.itemsize


class Int8Format:
    """Keys and values as int8, with a float32 scale for every row, head and token.

    A token's scale is its own largest absolute value over 127, so what is
    kept of a token never changes afterwards, whichever rows join or leave.
    """

    def pack(self, states: torch.Tensor) -> tuple[torch.Tensor, ...]:
        scales = states.abs().amax(dim=-1, keepdim=True).to(_SCALE_DTYPE) / _LARGEST_INT8
        # A token of zeros alone stays one of zeros.
        divisors = scales.clamp(min=torch.finfo(_SCALE_DTYPE).tiny)
        return (states / divisors).round_().to(torch.int8), scales

    def unpack(self, parts: Sequence[torch.Tensor], dtype: torch.dtype) -> torch.Tensor:
        codes, scales = parts
        return codes.to(dtype).mul_(scales.to(dtype))

    def bytes_per_head(self, head_size: int, dtype: torch.dtype) -> int:
        return head_size + _SCALE_DTYPE.itemsize


def cache_format(dtype: CacheDtype) -> CacheFormat:
    """The format of that name."""
    return Int8Format() if dtype == "int8" else FloatFormat()
