"""Brings streamed blocks into a few slots of device memory, in the fixed order of their use.

Block j of a stream always uses slot j mod K, so the model's tensors are views
of the slots that are set once and never touched again. A slot that is free
again is filled at once with the next block that uses it, from the last block
on to the first of the next pass: the link rests only when every slot is full.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch

from engine.weights.loader import LoadedBlock


@dataclass(eq=False)
class Slot:
    """Device memory for one streamed block at a time.

    Attributes:
        flat: uint8 [bytes of the largest block that uses it].
        holds: The block that is in it or on its way, or None.
        filling: The transport's own: how the fill stands.
    """

    flat: torch.Tensor
    holds: LoadedBlock | None = None
    filling: Any = field(default=None, repr=False)


class Transport(Protocol):
    """Fills slots; what it took is counted over its life."""

    streamed_bytes: int

    @property
    def wait_seconds(self) -> float:
        """How long computing waited for weights."""
        ...

    def expect(self, order: Sequence[LoadedBlock]) -> None:
        """Say which fills come next, again and again, so that disk reads can begin early."""
        ...

    def start(self, slot: Slot, block: LoadedBlock) -> None:
        """Begin to fill a slot whose last block is no longer needed."""
        ...

    def finish(self, slot: Slot) -> None:
        """Make what computes next wait until the slot is full.

        Raises:
            ModelLoadError: The block cannot be read.
        """
        ...

    def settle(self, slot: Slot) -> None:
        """Wait until nothing writes to the slot, whatever became of it."""
        ...


class WeightStream:
    """The streamed blocks of one phase, used from the first to the last in every pass."""

    def __init__(
        self, blocks: Sequence[LoadedBlock], slots: Sequence[Slot], transport: Transport
    ) -> None:
        """A stream; several may share slots and transport, one being used at a time."""
        self._blocks, self._slots, self._transport = tuple(blocks), tuple(slots), transport

    @property
    def blocks(self) -> tuple[LoadedBlock, ...]:
        return self._blocks

    def slot_of(self, position: int) -> Slot:
        """Where a block always is when it is used."""
        return self._slots[position % len(self._slots)]

    def acquire(self, position: int) -> None:
        """Make a block's weights usable by what is computed next.

        Raises:
            ModelLoadError: They cannot be read; the next call tries again.
        """
        slot = self.slot_of(position)
        if slot.holds is not self._blocks[position]:
            # The first pass, or one after another phase or a broken pass.
            self._restart(position)
        try:
            self._transport.finish(slot)
        except BaseException:
            slot.holds = None
            raise

    def release(self, position: int) -> None:
        """Let a block's slot be filled with the next one that uses it."""
        after = self._after(position)
        if after != position:
            self._start(after)

    def _after(self, position: int) -> int:
        """The next block, around the end, that uses the same slot."""
        following = position + len(self._slots)
        return following if following < len(self._blocks) else position % len(self._slots)

    def _start(self, position: int) -> None:
        slot = self.slot_of(position)
        slot.holds = self._blocks[position]
        self._transport.start(slot, self._blocks[position])

    def _restart(self, position: int) -> None:
        for slot in self._slots:
            self._transport.settle(slot)
        count, slots = len(self._blocks), len(self._slots)
        first: dict[int, int] = {}
        for ahead in range(count):
            following = (position + ahead) % count
            first.setdefault(following % slots, following)
        # What the last releases before this position would have asked for comes first.
        order = [self._after((position - slots + ahead) % count) for ahead in range(count)]
        self._transport.expect([self._blocks[each] for each in order])
        for each in first.values():
            if self.slot_of(each).holds is not self._blocks[each]:
                self._start(each)
