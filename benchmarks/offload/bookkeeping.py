"""What the engine's own work costs: hooks, slots and their order, without any weights."""

from __future__ import annotations

import time
from collections.abc import Sequence

import torch

from engine.store.read import StoredBlock
from engine.weights.loader import LoadedBlock
from engine.weights.passes import StreamedPasses
from engine.weights.stream import Slot, WeightStream

SLOTS = 2
PASSES = 300


class NullTransport:
    """A Transport to which every block is there at once."""

    streamed_bytes = 0
    wait_seconds = 0.0

    def expect(self, order: Sequence[LoadedBlock]) -> None:
        return None

    def start(self, slot: Slot, block: LoadedBlock) -> None:
        return None

    def finish(self, slot: Slot) -> None:
        return None

    def settle(self, slot: Slot) -> None:
        return None


def bookkeeping_seconds(block_count: int) -> float:
    """Of one pass over so many streamed blocks: the median of many, less the same unhooked."""
    plain = _modules(block_count)
    hooked = _modules(block_count)
    transport = NullTransport()
    passes = StreamedPasses(transport)
    blocks = [
        LoadedBlock(tier="disk", stored=StoredBlock(name=str(number), segments=()))
        for number in range(block_count)
    ]
    slots = [Slot(torch.empty(0, dtype=torch.uint8)) for _ in range(SLOTS)]
    stream = WeightStream(blocks, slots, transport)
    for position, module in enumerate(hooked):
        passes.add_stop(module, stream, position)
    nothing = torch.empty(1)
    with torch.inference_mode():
        without = _median_seconds(plain, nothing)
    started = time.perf_counter()
    for _ in range(PASSES):
        passes.together([lambda: hooked(nothing)])
    return max(0.0, (time.perf_counter() - started) / PASSES - without)


def _modules(count: int) -> torch.nn.Sequential:
    return torch.nn.Sequential(*(torch.nn.Identity() for _ in range(count)))


def _median_seconds(model: torch.nn.Module, nothing: torch.Tensor) -> float:
    seconds = []
    for _ in range(PASSES):
        started = time.perf_counter()
        model(nothing)
        seconds.append(time.perf_counter() - started)
    return sorted(seconds)[PASSES // 2]
