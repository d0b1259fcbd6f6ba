"""Making a weight int8 row by row, a few rows at a time."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from engine.quiet import quiet_libraries

# In elements. On a CPU a chunk stays in the cache: 1.1 GB of float16 a second on
# one core for rows of 4096, against 0.2 for chunks four times as large.
CPU_CHUNK_ELEMENTS = 2**18


CUDA_CHUNK_ELEMENTS = 2**25


def quantised_chunks(
    weight: torch.Tensor, *, load_dtype: torch.dtype, is_transposed: bool, device: torch.device
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Yield the int8 rows of a linear and their scales, in order, on the CPU.

    The scale of a row is its largest absolute value, so rows are independent
    and chunks of them give the same bytes as the whole. Casts as transformers
    does: to the dtype the model is loaded in, then to float16 as bitsandbytes'
    Int8Params does, then bitsandbytes.functional.int8_vectorwise_quant.

    Args:
        weight: [out, in], or [in, out] if transposed, in any float dtype.
        load_dtype: What transformers casts the checkpoint's tensor to.
        is_transposed: GPT-2's Conv1D.
        device: Where to compute.

    Yields:
        int8 [rows, in] and float32 [rows].
    """
    with quiet_libraries():
        from bitsandbytes.functional import int8_vectorwise_quant

    oriented = weight.T if is_transposed else weight
    rows = chunk_rows(oriented, device)
    for start in range(0, oriented.shape[0], rows):
        chunk = oriented[start : start + rows].to(load_dtype).contiguous()
        int8, scales, _ = int8_vectorwise_quant(chunk.to(device=device, dtype=torch.float16))
        yield int8.cpu(), scales.cpu()


def cast_chunks(tensor: torch.Tensor, dtype: torch.dtype) -> Iterator[torch.Tensor]:
    """Yield a tensor's elements in order, cast, a few rows at a time, flattened."""
    flat = tensor.reshape(-1)
    for start in range(0, flat.numel(), CPU_CHUNK_ELEMENTS):
        yield flat[start : start + CPU_CHUNK_ELEMENTS].to(dtype)


def chunk_rows(weight: torch.Tensor, device: torch.device) -> int:
    """Rows to quantise at a time."""
    elements = CUDA_CHUNK_ELEMENTS if device.type == "cuda" else CPU_CHUNK_ELEMENTS
    return max(1, elements // max(1, weight.shape[1]))
