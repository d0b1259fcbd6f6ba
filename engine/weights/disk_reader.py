"""Reads blocks of a store from disk into memory, in threads, ahead of their use."""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path

import torch

from engine.interface import ModelLoadError
from engine.store.checksum import word_sum
from engine.store.read import Segment, StoredBlock
from engine.weights.direct_file import DirectFile, open_direct


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
        self._direct: dict[Path, DirectFile | None] = {}

    def begin(self, block: StoredBlock, target: torch.Tensor) -> PendingRead:
        """Begin to read a block into a buffer, uint8 [at least buffer_bytes] on the CPU."""
        return PendingRead(
            tuple(
                (
                    segment,
                    tuple(
                        self._pool.submit(
                            _read,
                            segment,
                            self._direct_file(segment.path),
                            start,
                            target[segment.offset + start :][:count],
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
        for file in self._direct.values():
            if file is not None:
                file.close()
        self._direct.clear()

    def _direct_file(self, path: Path) -> DirectFile | None:
        if path not in self._direct:
            self._direct[path] = open_direct(path)
        return self._direct[path]


def _read(segment: Segment, direct: DirectFile | None, start: int, target: torch.Tensor) -> int:
    try:
        count = direct.read(segment.data_start + start, target) if direct else 0
        total = word_sum(target[:count].numpy(), start) if count else 0
        return total + (segment.read(start + count, target[count:]) if count < len(target) else 0)
    except ModelLoadError:
        raise
    except BaseException as error:
        # Whatever ends a reader must not look like the worker's own end.
        raise ModelLoadError(f"reading {segment.path} failed: {error!r}") from error
