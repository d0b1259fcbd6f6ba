"""The bandwidth from pinned memory to a GPU: what streaming is held against."""

from __future__ import annotations

from contextlib import ExitStack

import torch

from engine.weights.buffers import host_buffer

# As large as a layer of gpt-neox-20b, in int8.
COPY_BYTES = 432 * 2**20
COPIES = 20


def link_bytes_per_second() -> float:
    """Of copies one after the other, by the GPU's own clock."""
    with ExitStack() as cleanup:
        source = host_buffer(COPY_BYTES, is_pinned=True, cleanup=cleanup)
        source.fill_(1)
        target = torch.empty(COPY_BYTES, dtype=torch.uint8, device="cuda")
        before, after = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
        target.copy_(source, non_blocking=True)
        before.record()
        for _ in range(COPIES):
            target.copy_(source, non_blocking=True)
        after.record()
        torch.cuda.synchronize()
        milliseconds: float = before.elapsed_time(after)
        return COPIES * COPY_BYTES / (milliseconds / 1000)
