"""Reads blocks of a store from disk into memory, in threads, ahead of their use."""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass

import torch

from worker.engine.block_file import Segment, StoredBlock
from worker.engine.engine import ModelLoadError


@dataclass(frozen=True)
class PendingRead:
    """A block on its way into a buffer: for each of its files, the pieces."""

    pieces: tuple[tuple[Segment, tuple[Future[int], ...]], ...]

    def wait(self) -> None:
        """Wait for the last byte.

        Raises:
            ModelLoadError: It cannot be read, or is not what was written; the
                message names the file.
        """
        for segment, futures in self.pieces:
            segment.check([future.result() for future in futures])

    def abandon(self) -> None:
        """Wait until nothing writes to the buffer any more, whatever was read."""
        futures = [future for _, each in self.pieces for future in each]
        for future in futures:
            future.cancel()
        wait(futures)


class DiskReader:
    """Threads that read pieces of blocks; a piece that fails fails its block."""

    def __init__(self, threads: int) -> None:
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="disk-reader")

    def begin(self, block: StoredBlock, target: torch.Tensor) -> PendingRead:
        """Begin to read a block into a buffer, uint8 [at least buffer_bytes] on the CPU."""
        return PendingRead(
            tuple(
                (
                    segment,
                    tuple(
                        self._pool.submit(
                            _read, segment, start, target[segment.offset + start :][:count]
                        )
                        for start, count in segment.pieces()
                    ),
                )
                for segment in block.segments
            )
        )

    def close(self) -> None:
        """End the threads; reads under way are finished first."""
        self._pool.shutdown(wait=True, cancel_futures=True)


def _read(segment: Segment, start: int, target: torch.Tensor) -> int:
    try:
        return segment.read(start, target)
    except ModelLoadError:
        raise
    except BaseException as error:
        # Whatever ends a reader must not look like the worker's own end.
        raise ModelLoadError(f"reading {segment.path} failed: {error!r}") from error
