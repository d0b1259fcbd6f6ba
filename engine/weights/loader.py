"""Materialises a store by a placement: each block on the device, in RAM or left on disk."""

from __future__ import annotations

import mmap
import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch

from engine.interface import LoadInterruptedError, LoadProgress, ModelLoadError
from engine.plan.plan import Tier
from engine.store.prepare import Int8Store
from engine.store.read import PIECE_BYTES, Segment, StoredBlock, open_block, require_layout
from engine.weights.buffers import host_buffer

# A second one keeps the disk busy while the first sums what it has read.
READERS = 2


@dataclass(frozen=True, kw_only=True)
class LoadedBlock:
    """A block where it lives.

    Attributes:
        tier: The tier that it is in.
        stored: Its open files, and where every tensor is in a flat buffer.
        flat: uint8 [stored.buffer_bytes], on the device or in RAM; None on
            disk, and for what is resident on a CPU, which is the mapped file.
        tensors: Views by the names in the file; empty on disk.
    """

    tier: Tier
    stored: StoredBlock
    flat: torch.Tensor | None = None
    tensors: Mapping[str, torch.Tensor] = field(default_factory=dict)

    @property
    def bytes(self) -> int:
        """Bytes that are allocated for it, or mapped."""
        if self.tier == "disk":
            return 0
        return self.stored.bytes if self.flat is None else self.flat.numel()


@dataclass(frozen=True, kw_only=True)
class LoadedStore:
    """All blocks of a store; free it with close(), or use it in a `with`.

    Attributes:
        blocks: Blocks by name, in the placement's order; none once it is closed.
    """

    blocks: dict[str, LoadedBlock]
    _cleanup: ExitStack

    def bytes_at(self, tier: Tier) -> int:
        """Bytes that are allocated or mapped in one tier; none on disk."""
        return sum(block.bytes for block in self.blocks.values() if block.tier == tier)

    def close(self) -> None:
        """Close files, unregister and free buffers; memory goes with the last view of it."""
        self.blocks.clear()
        self._cleanup.close()

    def __enter__(self) -> LoadedStore:
        return self

    def __exit__(self, *_exception: object) -> None:
        self.close()


def load_store(
    store: Int8Store,
    placement: Mapping[str, Tier],
    device: torch.device,
    *,
    on_progress: Callable[[LoadProgress], None],
    should_stop: Callable[[], bool],
) -> LoadedStore:
    """Load every block of a store to its tier; each of its files is opened once.

    Args:
        store: Complete.
        placement: Tier of each block, in the order of execution.
        device: The device of resident blocks.
        on_progress: Told stage "load" in bytes of what is resident or in RAM.
        should_stop: Asked after every few MiB.

    Raises:
        ModelLoadError: The placement is not of this store's blocks, a file is
            missing or damaged, or there is not enough memory.
        LoadInterruptedError: should_stop() turned true; everything is freed.
    """
    _refuse_other_blocks(store, placement)
    cleanup = ExitStack()
    try:
        stored = [_open(store, name, cleanup) for name in placement]
        total = sum(block.bytes for block in stored if placement[block.name] != "disk")
        progress = _Progress(total, on_progress, should_stop)
        with ExitStack() as only_while_loading:
            reader = _Reader(device, progress, cleanup, only_while_loading)
            blocks = {block.name: _load(block, placement[block.name], reader) for block in stored}
            reader.finish()
    except BaseException:
        cleanup.close()
        raise
    return LoadedStore(blocks=blocks, _cleanup=cleanup)


def _open(store: Int8Store, name: str, cleanup: ExitStack) -> StoredBlock:
    block = open_block(store.folder, name, store.manifest, cleanup)
    (layout,) = (each for each in store.layout.blocks if each.name == name)
    require_layout(block, layout)
    return block


def _load(block: StoredBlock, tier: Tier, reader: _Reader) -> LoadedBlock:
    if tier == "disk":
        return LoadedBlock(tier=tier, stored=block)
    if tier == "resident" and not reader.is_cuda:
        return LoadedBlock(tier=tier, stored=block, tensors=reader.mapped(block))
    flat = reader.to_ram(block) if tier == "ram" else reader.to_gpu(block)
    return LoadedBlock(tier=tier, stored=block, flat=flat, tensors=block.views(flat))


@contextmanager
def _allocating(what: str, size: int) -> Iterator[None]:
    """Say what there was no room for; torch's out-of-memory is a RuntimeError."""
    try:
        yield
    except (OSError, RuntimeError) as error:
        raise ModelLoadError(
            f"there is no room for {what} of {size / 2**20:.0f} MiB ({error}); free memory, or "
            "plan with smaller budgets"
        ) from error


class _Progress:
    """Counts bytes and tells of them."""

    def __init__(
        self,
        total: int,
        on_progress: Callable[[LoadProgress], None],
        should_stop: Callable[[], bool],
    ) -> None:
        self._done, self._total = 0, total
        self._on_progress, self._should_stop = on_progress, should_stop

    def add(self, count: int) -> None:
        self._done += count
        self._on_progress(
            LoadProgress(stage="load", done=self._done, total=self._total, unit="bytes")
        )
        if self._should_stop():
            raise LoadInterruptedError


class _Reader:
    """Reads blocks piece by piece, to a GPU through two pinned buffers in turn."""

    def __init__(
        self,
        device: torch.device,
        progress: _Progress,
        cleanup: ExitStack,
        only_while_loading: ExitStack,
    ) -> None:
        self._device = device
        self._progress = progress
        self._cleanup = cleanup
        self._only_while_loading = only_while_loading
        self._staging: list[tuple[torch.Tensor, Any]] = []
        self._turn = 0
        self._of_thread = threading.local()
        self._pool = ThreadPoolExecutor(READERS, thread_name_prefix="load-reader")
        # What is not begun yet when loading stops is not read any more.
        only_while_loading.callback(self._pool.shutdown, wait=True, cancel_futures=True)

    @property
    def is_cuda(self) -> bool:
        return self._device.type == "cuda"

    def to_ram(self, block: StoredBlock) -> torch.Tensor:
        size = block.buffer_bytes
        with _allocating(f"{block.name} in RAM, a buffer", size):
            flat = host_buffer(size, is_pinned=self.is_cuda, cleanup=self._cleanup)
        for segment in block.segments:
            data = flat[segment.offset : segment.offset + segment.bytes]
            self._read_all(segment, partial(data.narrow, 0))
        return flat

    def to_gpu(self, block: StoredBlock) -> torch.Tensor:
        size = block.buffer_bytes
        with _allocating(f"{block.name} on {self._device}, a buffer", size):
            flat = torch.empty(size, dtype=torch.uint8, device=self._device)
        for segment in block.segments:
            sums = []
            for start, count in segment.pieces():
                staging, is_free = self._next_staging()
                # The copy that last read it, two pieces ago.
                is_free.synchronize()
                sums.append(segment.read(start, staging[:count]))
                first = segment.offset + start
                flat[first : first + count].copy_(staging[:count], non_blocking=True)
                is_free.record()
                self._progress.add(count)
            segment.check(sums)
        return flat

    def mapped(self, block: StoredBlock) -> dict[str, torch.Tensor]:
        """The block's tensors as views of its files, each page read once already."""
        tensors: dict[str, torch.Tensor] = {}
        for segment in block.segments:
            # Now and not in the first pass, where a broken disk is a SIGBUS.
            self._read_all(segment, lambda _start, count: self._scratch()[:count])
            with _allocating(f"{block.name}, a mapping", segment.bytes):
                pages = _mapped(segment)
            tensors |= segment.views(pages)
        return tensors

    def finish(self) -> None:
        """Wait until everything has arrived."""
        if self.is_cuda:
            torch.cuda.synchronize(self._device)

    def _read_all(self, segment: Segment, target: Callable[[int, int], torch.Tensor]) -> None:
        """Read a segment with all threads; target is asked where, in one of them."""

        def read(piece: tuple[int, int]) -> int:
            return segment.read(piece[0], target(*piece))

        sums = []
        pieces = list(segment.pieces())
        for (_, count), piece_sum in zip(pieces, self._pool.map(read, pieces), strict=True):
            sums.append(piece_sum)
            self._progress.add(count)
        segment.check(sums)

    def _scratch(self) -> torch.Tensor:
        # One for each thread: torch's allocations of this size leave holes in the heap.
        if not hasattr(self._of_thread, "scratch"):
            self._of_thread.scratch = self._piece_buffer(is_pinned=False)
        scratch: torch.Tensor = self._of_thread.scratch
        return scratch

    def _next_staging(self) -> tuple[torch.Tensor, Any]:
        if not self._staging:
            self._staging = [
                (self._piece_buffer(is_pinned=True), torch.cuda.Event())  # type: ignore[no-untyped-call]
                for _ in range(2)
            ]
        self._turn = 1 - self._turn
        return self._staging[self._turn]

    def _piece_buffer(self, *, is_pinned: bool) -> torch.Tensor:
        with _allocating("what is being read, a buffer", PIECE_BYTES):
            return host_buffer(PIECE_BYTES, is_pinned=is_pinned, cleanup=self._only_while_loading)


def _mapped(segment: Segment) -> torch.Tensor:
    # Copy on write, because torch wants memory it may write to.
    pages = mmap.mmap(segment.file.fileno(), 0, access=mmap.ACCESS_COPY)
    return torch.frombuffer(
        pages, dtype=torch.uint8, offset=segment.data_start, count=segment.bytes
    )


def _refuse_other_blocks(store: Int8Store, placement: Mapping[str, Tier]) -> None:
    differing = sorted({block.name for block in store.layout.blocks} ^ set(placement))
    if differing:
        raise ModelLoadError(
            f"the placement is not one of {store.folder}: {differing[0]} is only in one of them; "
            "plan again from the configuration that the store was made of"
        )
