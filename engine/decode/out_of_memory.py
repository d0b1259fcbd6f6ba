"""Memory that ran out: how it shows, what is told of it, and giving back what can be."""

from __future__ import annotations

import torch

from engine.decode.row import Row
from engine.interface import RequestError


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error of torch or Python means that memory ran out.

    torch raises OutOfMemoryError for its own GPU allocations, and a plain
    RuntimeError for the CPU's and for cuBLAS' workspace.
    """
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return True
    message = str(error)
    return "can't allocate memory" in message or "CUBLAS_STATUS_ALLOC_FAILED" in message


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
