"""Fills the slots of a box whose processor computes: disk reads land in them directly."""

from __future__ import annotations

import time
from collections.abc import Sequence

from engine.weights.disk_reader import DiskReader, PendingRead
from engine.weights.loader import LoadedBlock
from engine.weights.stream import Slot


class HostTransport:
    """A Transport to slots in RAM."""

    def __init__(self, reader: DiskReader) -> None:
        self._reader = reader
        self.streamed_bytes = 0
        self.wait_seconds = 0.0

    def expect(self, order: Sequence[LoadedBlock]) -> None:
        """Nothing to do: a free slot is all that a read can begin with."""

    def start(self, slot: Slot, block: LoadedBlock) -> None:
        """Begin to read a block, or copy it if it is in RAM."""
        self.streamed_bytes += block.stored.bytes
        slot.filling = None
        if block.flat is not None:
            slot.flat[: block.flat.numel()].copy_(block.flat)
            return
        slot.filling = self._reader.begin(block.stored, slot.flat)

    def finish(self, slot: Slot) -> None:
        """Wait for the block's last byte; ModelLoadError if it cannot be read."""
        pending: PendingRead | None = slot.filling
        if pending is None:
            return
        started = time.perf_counter()
        try:
            pending.wait()
        except BaseException:
            pending.abandon()
            raise
        finally:
            slot.filling = None
            self.wait_seconds += time.perf_counter() - started

    def settle(self, slot: Slot) -> None:
        """Wait until no thread writes to the slot; an unread block is not in it."""
        pending: PendingRead | None = slot.filling
        if pending is not None:
            pending.abandon()
            slot.filling, slot.holds = None, None
