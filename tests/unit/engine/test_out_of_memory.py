"""What is given back when memory is short, and when a model is closed."""

from __future__ import annotations

import ctypes

import pytest
import torch

from engine.decode.out_of_memory import is_out_of_memory
from engine.device import free_unused_memory
from tests.peak_memory import anonymous_bytes

MIB = 2**20


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (torch.OutOfMemoryError("CUDA out of memory"), True),
        (MemoryError(), True),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory"), True),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling"), True),
        (RuntimeError("CUDA error: CUBLAS_STATUS_NOT_INITIALIZED when calling"), True),
        (RuntimeError("CUDA error: out of memory\nCUDA kernel errors might be"), True),
        (RuntimeError("CUDA error: an illegal memory access was encountered"), False),
        (RuntimeError("shapes cannot be multiplied"), False),
    ],
)
def test_what_counts_as_out_of_memory(error: Exception, expected: bool) -> None:
    assert is_out_of_memory(error) is expected


@pytest.mark.skipif(
    not hasattr(ctypes.CDLL(None), "malloc_trim"), reason="the C library cannot trim its heap"
)
def test_free_memory_in_the_middle_of_the_heap_goes_back_to_the_system() -> None:
    # given a heap of small pieces, most of which are freed, but not the last,
    # and no holes from before that they would fill
    free_unused_memory()
    before = anonymous_bytes()
    pieces = [bytes([number % 251]) * 65_536 for number in range(1024)]
    kept = pieces[::64]
    full = anonymous_bytes()
    del pieces
    # when
    free_unused_memory()
    # then little more is held than what is in use
    assert full - before > 48 * MIB, "the pieces must have been held"
    assert anonymous_bytes() - before < len(kept) * 65_536 + 8 * MIB
