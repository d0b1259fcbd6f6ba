"""Memory of exactly the size asked for, that a GPU can copy from while it computes."""

from __future__ import annotations

import mmap
from contextlib import ExitStack, suppress
from typing import Any

import torch


def host_buffer(size: int, *, is_pinned: bool, cleanup: ExitStack) -> torch.Tensor:
    """Allocate bytes on pages of their own.

    torch's allocator of pinned memory rounds up to a power of two: 512 MiB for
    a block of 432. Registering memory that is there already does not, and it
    has to be whole pages, since a page cannot be registered twice.

    Args:
        size: Number of bytes.
        is_pinned: Register it with CUDA, for copies beside the computation.
        cleanup: Will unregister it; the memory goes with its last view.

    Returns:
        uint8 [size].

    Raises:
        OSError: There is not so much memory.
        RuntimeError: CUDA does not register it.
    """
    # Private: shared anonymous memory would count as a file's.
    pages = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    _ask_for_huge_pages(pages)
    buffer = torch.frombuffer(pages, dtype=torch.uint8)
    if is_pinned:
        _register(buffer)
        cleanup.callback(_unregister, buffer)
    return buffer


def _ask_for_huge_pages(pages: mmap.mmap) -> None:
    """A disk's read into small pages is cut up into many requests of at most so many pages.

    Streaming 1.26 GB a step into slots of 4 KiB pages took 1.2 to 1.4 seconds,
    and 0.72 into huge ones.
    """
    with suppress(AttributeError, OSError):  # not on Linux, or a kernel without them
        pages.madvise(mmap.MADV_HUGEPAGE)


def _register(buffer: torch.Tensor) -> None:
    cudart = torch.cuda.cudart()  # type: ignore[no-untyped-call]
    _require_success(cudart.cudaHostRegister(buffer.data_ptr(), buffer.numel(), 0))


def _unregister(buffer: torch.Tensor) -> None:
    # A copy from it may be under way.
    torch.cuda.synchronize()
    cudart = torch.cuda.cudart()  # type: ignore[no-untyped-call]
    _require_success(cudart.cudaHostUnregister(buffer.data_ptr()))


def _require_success(status: Any) -> None:
    if int(status) != 0:
        raise RuntimeError(f"CUDA error {int(status)} with pinned memory")
