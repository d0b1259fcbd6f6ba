"""Reads blocks of a store from disk into memory, in threads, ahead of their use."""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import torch

from worker.engine.block_file import Segment, StoredBlock


@dataclass(frozen=True)
class PendingRead:
    """A block on its way into a buffer."""

    block: StoredBlock
    pieces: tuple[Future[None], ...]

    def is_done(self) -> bool:
        """Whether wait() would return, or raise, at once."""
        return all(piece.done() for piece in self.pieces)

    def wait(self) -> None:
        """Wait for the last byte.

        Raises:
            ModelLoadError: It cannot be read; the message names the file.
        """
        for piece in self.pieces:
            piece.result()

    def abandon(self) -> None:
        """Wait until nothing writes to the buffer any more, whatever was read."""
        for piece in self.pieces:
            piece.cancel()
        for piece in self.pieces:
            if not piece.cancelled():
                piece.exception()


class DiskReader:
    """Threads that read pieces of blocks; a piece that fails fails its block."""

    def __init__(self, threads: int) -> None:
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="disk-reader")

    def begin(self, block: StoredBlock, target: torch.Tensor) -> PendingRead:
        """Begin to read a block into a buffer, uint8 [at least buffer_bytes] on the CPU."""
        pieces = tuple(
            self._pool.submit(_read, segment, start, target[segment.offset + start :][:count])
            for segment, start, count in block.pieces()
        )
        return PendingRead(block, pieces)

    def close(self) -> None:
        """End the threads; reads under way are finished first."""
        self._pool.shutdown(wait=True, cancel_futures=True)


def _read(segment: Segment, start: int, target: torch.Tensor) -> None:
    segment.read(start, target)
