"""The order of copies and disk reads towards a GPU, on a stand-in for CUDA's streams.

The stand-in does at once what a stream does later, so nothing here shows that
copies overlap or wait for each other on a real one; tests/gpu does.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import ExitStack, nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from engine.interface import ModelLoadError
from engine.plan.plan import Tier
from engine.store.manifest import StoreManifest, StoreOrigin, WrittenFile
from engine.store.read import Segment, open_block
from engine.weights.cuda_transport import CudaTransport
from engine.weights.disk_reader import DiskReader
from engine.weights.loader import LoadedBlock
from engine.weights.stream import Slot, WeightStream
from tests.stores import read_block

VALUES = 64


class StandInEvent:
    def __init__(self, *, enable_timing: bool = False) -> None:
        self.moment = 0.0 if enable_timing else -1.0

    def record(self, _stream: Any = None) -> None:
        self.moment = time.perf_counter()

    def synchronize(self) -> None:
        pass

    def query(self) -> bool:
        return True

    def elapsed_time(self, later: StandInEvent) -> float:
        return (later.moment - self.moment) * 1000


class StandInStream:
    def __init__(self, _device: Any = None) -> None:
        pass

    def wait_event(self, _event: StandInEvent) -> None:
        pass

    def synchronize(self) -> None:
        pass


@pytest.fixture(autouse=True)
def stand_in_for_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "Event", StandInEvent)
    monkeypatch.setattr(torch.cuda, "Stream", StandInStream)
    monkeypatch.setattr(torch.cuda, "stream", nullcontext)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda _device: StandInStream())


@pytest.fixture
def files() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


def blocks(folder: Path, tiers: list[Tier], files: ExitStack) -> list[LoadedBlock]:
    """One block per tier, filled with its own number."""
    written = {}
    for number in range(len(tiers)):
        name = f"decoder-{number:03d}.safetensors"
        save_file({"w": torch.full((VALUES,), number, dtype=torch.int8)}, folder / name)
        written[name] = WrittenFile(bytes=(folder / name).stat().st_size, sha256="")
    origin = StoreOrigin(location="", commit=None, fingerprint="", quantisation={}, dtype="")
    manifest = StoreManifest(origin=origin, total_bytes=0, files=written)
    found = []
    for number, tier in enumerate(tiers):
        stored = open_block(folder, f"decoder-{number:03d}", manifest, files)
        flat = read_block(stored) if tier == "ram" else None
        found.append(LoadedBlock(tier=tier, stored=stored, flat=flat))
    return found


def stream_of(
    found: list[LoadedBlock], slot_count: int, files: ExitStack, staging_count: int = 2
) -> tuple[WeightStream, CudaTransport]:
    size = max(block.stored.buffer_bytes for block in found)
    reader = DiskReader(2)
    files.callback(reader.close)
    staging = [torch.zeros(size, dtype=torch.uint8) for _ in range(staging_count)]
    transport = CudaTransport(torch.device("cpu"), reader, staging)
    files.callback(transport.close)
    slots = [Slot(torch.zeros(size, dtype=torch.uint8)) for _ in range(slot_count)]
    return WeightStream(found, slots, transport), transport


def passes(stream: WeightStream, count: int) -> list[int]:
    """What is in each block's slot when its turn comes."""
    seen = []
    for _ in range(count):
        for position in range(len(stream.blocks)):
            stream.acquire(position)
            (value,) = set(stream.slot_of(position).flat[:VALUES].tolist())
            seen.append(value)
            stream.release(position)
    return seen


MIXTURES: tuple[list[Tier], ...] = (
    ["ram"] * 5,
    ["disk"] * 5,
    ["disk"] * 2,
    ["disk"],
    ["ram", "disk", "ram", "ram", "disk", "ram", "disk"],
    ["disk", "ram", "ram", "ram"],
)


@pytest.mark.parametrize("tiers", MIXTURES, ids="-".join)
@pytest.mark.parametrize("slot_count", [1, 2, 3, 9])
def test_every_block_is_in_its_slot_when_its_turn_comes(
    tiers: list[Tier], slot_count: int, tmp_path: Path, files: ExitStack
) -> None:
    stream, transport = stream_of(blocks(tmp_path, tiers, files), slot_count, files)
    assert passes(stream, 4) == list(range(len(tiers))) * 4
    assert transport.wait_seconds >= 0


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The files that pieces are read of, as they are."""
    names: list[str] = []
    read = Segment.read

    def counted(segment: Segment, start: int, target: torch.Tensor) -> int:
        names.append(segment.path.name)
        return read(segment, start, target)

    monkeypatch.setattr(Segment, "read", counted)
    return names


def test_a_block_on_disk_is_read_once_a_pass(
    tmp_path: Path, files: ExitStack, reads: list[str]
) -> None:
    found = blocks(tmp_path, ["disk", "ram", "disk", "ram", "disk"], files)
    stream, transport = stream_of(found, 2, files)
    reads.clear()
    passes(stream, 10)
    # Three blocks for two buffers, and what is read ahead for a pass that may come.
    assert 3 * 10 <= len(reads) <= 3 * 10 + 4
    assert transport.streamed_bytes >= 10 * sum(block.stored.bytes for block in found)


def test_blocks_that_fit_the_buffers_are_read_once(
    tmp_path: Path, files: ExitStack, reads: list[str]
) -> None:
    found = blocks(tmp_path, ["disk", "ram", "disk"], files)
    stream, _ = stream_of(found, 1, files)
    reads.clear()
    passes(stream, 10)
    assert len(reads) == 2


def test_a_pass_that_broke_off_leaves_the_next_one_right(tmp_path: Path, files: ExitStack) -> None:
    found = blocks(tmp_path, list(MIXTURES[4]), files)
    stream, _ = stream_of(found, 2, files)
    for broken_at in range(len(found)):
        for position in range(broken_at + 1):
            stream.acquire(position)
            if position < broken_at:
                stream.release(position)
        assert passes(stream, 2) == list(range(len(found))) * 2


def test_two_phases_share_slots_and_buffers(tmp_path: Path, files: ExitStack) -> None:
    found = blocks(tmp_path, ["disk", "ram", "disk", "disk", "ram", "disk"], files)
    stream, transport = stream_of(found, 2, files)
    slots = [stream.slot_of(0), stream.slot_of(1)]
    encoder = WeightStream(found[:3], slots, transport)
    decoder = WeightStream(found[3:], slots, transport)
    for _ in range(3):
        assert passes(encoder, 1) == [0, 1, 2]
        assert passes(decoder, 2) == [3, 4, 5] * 2


def test_a_block_that_cannot_be_read_is_told_of_and_read_again_later(
    tmp_path: Path, files: ExitStack
) -> None:
    found = blocks(tmp_path, ["disk"] * 4, files)
    stream, _ = stream_of(found, 2, files)
    path = tmp_path / "decoder-002.safetensors"
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) - VALUES])
    with pytest.raises(ModelLoadError, match=r"decoder-002\.safetensors"):
        passes(stream, 2)
    path.write_bytes(whole)
    assert passes(stream, 3) == [0, 1, 2, 3] * 3
