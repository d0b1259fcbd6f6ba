"""Memory that ran out: how it shows, what is told of it, and giving back what can be."""

from __future__ import annotations

import ctypes
import gc

import torch

from worker.engine.engine import RequestError
from worker.engine.prompt_encoding import EncodedPrompt


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error of torch or Python means that memory ran out.

    torch raises OutOfMemoryError for its own GPU allocations, and a plain
    RuntimeError for the CPU's and for cuBLAS' workspace.
    """
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return True
    message = str(error)
    return "can't allocate memory" in message or "CUBLAS_STATUS_ALLOC_FAILED" in message


def out_of_memory(prompt: EncodedPrompt, device: str) -> RequestError:
    """What a prompt that fits nowhere is told."""
    return RequestError(
        code="out_of_memory",
        message=(
            f"{len(prompt.token_ids)} prompt tokens and up to {prompt.max_new_tokens} new ones do "
            f"not fit in the memory of {device} beside the model, even alone; shorten the prompt, "
            "lower max_new_tokens or free memory that other programs hold"
        ),
    )


def free_unused_memory() -> None:
    """Give back what no tensor uses any more, on the device and on the host."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    _trim_heap()


def _trim_heap() -> None:
    """Give free pages of the C library's heap back to the system, where it offers that (glibc).

    By itself it gives back the heap's end only, up to the last thing that is
    still in use. So what one model had freed stayed with the process, and the
    budget of the next was that much smaller.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(ctypes.c_size_t(0))
