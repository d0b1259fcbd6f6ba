"""The way to a GPU, walked on a CPU with CUDA's part counted instead of done."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import torch

from engine.interface import LoadInterruptedError, LoadProgress
from engine.store import read as block_file
from engine.store.read import StoredBlock, open_block
from engine.weights import buffers as host_buffer
from engine.weights import loader as store_loader
from engine.weights.loader import load_store
from tests.placements import differing, tensors_by_safetensors
from tests.stores import CPU, prepare
from tests.tiny_checkpoints import checkpoint_folder


class CountedCuda:
    """Registrations that are open, and the sizes of all there were."""

    def __init__(self) -> None:
        self.registered: set[int] = set()
        self.pinned_bytes: list[int] = []

    def cudaHostRegister(self, address: int, size: int, _flags: int) -> int:  # noqa: N802
        self.registered.add(address)
        self.pinned_bytes.append(size)
        return 0

    def cudaHostUnregister(self, address: int) -> int:  # noqa: N802
        self.registered.remove(address)
        return 0


class CountedEvent:
    """Knows whether a copy is under way; nothing may be recorded over that."""

    def __init__(self) -> None:
        self.is_copying = False

    def synchronize(self) -> None:
        self.is_copying = False

    def record(self) -> None:
        assert not self.is_copying
        self.is_copying = True


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> CountedCuda:
    counted = CountedCuda()
    monkeypatch.setattr(torch.cuda, "cudart", lambda: counted)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda *_device: None)
    monkeypatch.setattr(torch.cuda, "Event", CountedEvent)
    monkeypatch.setattr(store_loader._Reader, "is_cuda", True)
    for module in (block_file, store_loader):
        monkeypatch.setattr(module, "PIECE_BYTES", 1000)  # many pieces to a tiny block
    return counted


def never() -> bool:
    return False


def load(tmp_path: Path, tier: Any, **options: Any) -> store_loader.LoadedStore:
    folder = checkpoint_folder("tiny-flan", tmp_path)
    store = prepare(folder, tmp_path / "stores")
    tiers = dict.fromkeys([block.name for block in store.layout.blocks], tier)
    options = {"on_progress": lambda _progress: None, "should_stop": never, **options}
    return load_store(store, tiers, CPU, **options)


def test_pieces_come_together_through_two_staging_buffers(
    cuda: CountedCuda, tmp_path: Path
) -> None:
    with load(tmp_path, "resident") as loaded:
        for block in loaded.blocks.values():
            assert differing(dict(block.tensors), tensors_by_safetensors(block.stored)) == []

        assert cuda.pinned_bytes == [1000, 1000]
        assert cuda.registered == set()  # they were only needed while loading


def test_what_is_in_ram_is_pinned_to_the_byte_until_it_is_closed(
    cuda: CountedCuda, tmp_path: Path
) -> None:
    loaded = load(tmp_path, "ram")
    sizes = [block.stored.buffer_bytes for block in loaded.blocks.values()]

    assert cuda.pinned_bytes == sizes
    assert len(cuda.registered) == len(sizes)

    loaded.close()

    assert cuda.registered == set()


def test_an_interrupted_load_leaves_nothing_pinned(cuda: CountedCuda, tmp_path: Path) -> None:
    said: list[LoadProgress] = []

    with pytest.raises(LoadInterruptedError):
        load(tmp_path, "ram", on_progress=said.append, should_stop=lambda: len(said) > 200)

    assert cuda.pinned_bytes
    assert cuda.registered == set()


def test_memory_that_is_not_registered_is_an_error(
    cuda: CountedCuda, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cuda, "cudaHostRegister", lambda *_arguments: 2)

    with pytest.raises(RuntimeError, match="CUDA error 2"), ExitStack() as cleanup:
        host_buffer.host_buffer(100, is_pinned=True, cleanup=cleanup)


def test_the_second_file_of_a_block_is_aligned_in_its_buffer(tmp_path: Path) -> None:
    folder = checkpoint_folder("tiny-flan", tmp_path)
    store = prepare(folder, tmp_path / "stores")

    with ExitStack() as files:
        block: StoredBlock = open_block(store.folder, "decoder-000", store.manifest, files)

    first, second = block.segments
    assert second.offset % block_file.SEGMENT_ALIGNMENT_BYTES == 0
    assert 0 <= second.offset - first.bytes < block_file.SEGMENT_ALIGNMENT_BYTES
