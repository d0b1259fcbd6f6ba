"""Memory that ran out: how it shows, what is told of it, and giving back what can be."""

from __future__ import annotations

import torch

from engine.decode.row import Row
from engine.interface import RequestError

# Of a CPU's allocator; of CUDA's own allocations, which do not go through torch's
# allocator; of cuBLAS, which finds no memory for a workspace or for its handle.
_WORDS = (
    "can't allocate memory",
    "CUDA error: out of memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "CUBLAS_STATUS_NOT_INITIALIZED",
)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error of torch or Python means that memory ran out.

    torch raises OutOfMemoryError for its own GPU allocations, and a plain
    RuntimeError for the CPU's, for CUDA's own and for cuBLAS'.
    """
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return True
    message = str(error)
    return any(words in message for words in _WORDS)


def out_of_memory(row: Row, device: str) -> RequestError:
    """What a prompt that fits nowhere is told."""
    return RequestError(
        code="out_of_memory",
        message=(
            f"{row.prompt_tokens} prompt tokens and up to {row.max_new_tokens} new ones do "
            f"not fit in the memory of {device} beside the model, even alone; shorten the prompt, "
            "lower max_new_tokens or free memory that other programs hold"
        ),
    )
