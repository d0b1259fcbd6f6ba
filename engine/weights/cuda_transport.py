"""Fills slots on a GPU: from pinned RAM, and from disk through pinned staging buffers.

Everything is copied on one stream beside the computation. A copy waits, on
the GPU, for the event that the slot's last block was computed with; computing
waits for the event that the copy is done. The host waits for disk reads only.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import torch

from engine.weights.disk_reader import DiskReader, PendingRead
from engine.weights.loader import LoadedBlock
from engine.weights.stream import Slot


@dataclass(eq=False)
class _Filling:
    """How a slot's fill stands; the events are made once and recorded again."""

    free: Any
    ready: Any
    issued: Future[None] | None = None


@dataclass(eq=False)
class _Staging:
    """A pinned buffer that one block is read into while another's is copied."""

    buffer: torch.Tensor
    copied: Any
    block: LoadedBlock | None = None
    reading: PendingRead | None = None


class CudaTransport:
    """A Transport to slots on a GPU."""

    def __init__(
        self, device: torch.device, reader: DiskReader, staging: Sequence[torch.Tensor]
    ) -> None:
        """A transport of its own stream.

        Args:
            device: Device of the slots.
            reader: Reads blocks that are on disk.
            staging: Pinned buffers, uint8 [bytes of the largest block on disk];
                none if nothing is on disk.
        """
        self._device = device
        self._reader = reader
        self._copies = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self._staging = [_Staging(buffer, torch.cuda.Event()) for buffer in staging]  # type: ignore[no-untyped-call]
        # One thread, so that blocks from disk are copied in the order asked for.
        self._copier = ThreadPoolExecutor(1, thread_name_prefix="weight-copier")
        self._order: list[LoadedBlock] = []
        self._next_read = 0
        self._stalls: deque[tuple[Any, Any]] = deque()
        self._stalled_seconds = 0.0
        self.streamed_bytes = 0

    @property
    def wait_seconds(self) -> float:
        """How long the GPU's computing stood still for copies, as far as they are done."""
        while self._stalls and self._stalls[0][1].query():
            before, after = self._stalls.popleft()
            self._stalled_seconds += before.elapsed_time(after) / 1000
        return self._stalled_seconds

    def expect(self, order: Sequence[LoadedBlock]) -> None:
        """Begin to read the first blocks of the order that are on disk."""
        self._copier.submit(self._expect, [b for b in order if b.tier == "disk"]).result()

    def start(self, slot: Slot, block: LoadedBlock) -> None:
        """Copy a block as soon as the slot's last one is computed with."""
        filling = self._filling(slot)
        filling.free.record(torch.cuda.current_stream(self._device))
        self.streamed_bytes += block.stored.bytes
        if block.flat is not None:
            self._copy(block.flat, slot, filling)
            filling.issued = None
        else:
            filling.issued = self._copier.submit(self._copy_from_disk, slot, block, filling)

    def finish(self, slot: Slot) -> None:
        """Make the current stream wait for the copy; ModelLoadError if it was not read."""
        filling = self._filling(slot)
        stream = torch.cuda.current_stream(self._device)
        before, after = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
        # Recorded before the host waits, so that its wait for a disk is counted.
        before.record(stream)
        if filling.issued is not None:
            filling.issued.result()
        stream.wait_event(filling.ready)
        after.record(stream)
        self._stalls.append((before, after))

    def settle(self, slot: Slot) -> None:
        """Wait for the host's part of a fill; the copies themselves keep their order."""
        filling: _Filling | None = slot.filling
        if filling is not None and filling.issued is not None:
            if filling.issued.exception() is not None:
                slot.holds = None
            filling.issued = None

    def close(self) -> None:
        """End the threads and wait for what is being copied or read."""
        self._copier.shutdown(wait=True, cancel_futures=True)
        for staging in self._staging:
            if staging.reading is not None:
                staging.reading.abandon()
        self._copies.synchronize()

    def _filling(self, slot: Slot) -> _Filling:
        if slot.filling is None:
            slot.filling = _Filling(torch.cuda.Event(), torch.cuda.Event())  # type: ignore[no-untyped-call]
        filling: _Filling = slot.filling
        return filling

    def _copy(self, source: torch.Tensor, slot: Slot, filling: _Filling) -> None:
        with torch.cuda.stream(self._copies):
            self._copies.wait_event(filling.free)
            slot.flat[: source.numel()].copy_(source, non_blocking=True)
            filling.ready.record(self._copies)

    # What follows runs in the copier's thread alone.

    def _expect(self, order: list[LoadedBlock]) -> None:
        self._order, self._next_read = order, 0
        soonest = [id(block) for block in order[: len(self._staging)]]
        for staging in self._staging:
            if id(staging.block) not in soonest:
                self._read_ahead(staging)

    def _copy_from_disk(self, slot: Slot, block: LoadedBlock, filling: _Filling) -> None:
        staging = self._staging_with(block)
        if staging.reading is not None:
            pending, staging.reading = staging.reading, None
            try:
                pending.wait()
            except BaseException:
                pending.abandon()
                staging.block = None
                raise
        self._copy(staging.buffer[: block.stored.buffer_bytes], slot, filling)
        staging.copied.record(self._copies)
        self._copier.submit(self._read_ahead, staging, block)

    def _staging_with(self, block: LoadedBlock) -> _Staging:
        """The buffer the block is in or on its way to; where it was not expected, begin now."""
        for staging in self._staging:
            if staging.block is block:
                return staging
        (staging, *_) = sorted(self._staging, key=lambda each: each.reading is not None)
        self._begin(staging, block)
        return staging

    def _read_ahead(self, staging: _Staging, copied: LoadedBlock | None = None) -> None:
        """Begin to read the next block into a buffer that is not needed any more."""
        if not self._order or (copied is not None and staging.block is not copied):
            return
        for _ in self._order:
            block = self._order[self._next_read]
            self._next_read = (self._next_read + 1) % len(self._order)
            if staging.block is block:
                return  # there are no more blocks on disk than buffers
            if all(block is not each.block for each in self._staging):
                self._begin(staging, block)
                return

    def _begin(self, staging: _Staging, block: LoadedBlock) -> None:
        if staging.reading is not None:
            staging.reading.abandon()
        # The copy out of it, which the GPU may not have come to yet.
        staging.copied.synchronize()
        staging.block = block
        staging.reading = self._reader.begin(block.stored, staging.buffer)
