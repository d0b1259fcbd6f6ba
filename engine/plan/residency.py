"""The ways to keep a part of a model's blocks on the device, and to place the rest.

They depend on the model alone and never on a budget. So a larger budget only
adds ways that fit, which is why more memory never makes a plan slower.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import combinations

from engine.plan.demands import BlockDemand, ModelDemands, Phase

# A third slot bought nothing when it was measured.
SLOTS = 2


# One buffer is read into while the other is copied from.
STAGING_BUFFERS = 2


def spread(count: int, chosen: int) -> frozenset[int]:
    """So many positions out of count, as even as can be, across the wrap as well.

    Bresenham's line: the gaps between neighbours differ by one at most.
    """
    return frozenset(i for i in range(count) if (i + 1) * chosen // count > i * chosen // count)


@dataclass(frozen=True, kw_only=True)
class HostSplit:
    """How one phase's streamed blocks are divided between RAM and disk.

    Attributes:
        in_ram: Names of the blocks in pinned RAM.
        ram_bytes: What they take there.
        disk_bytes: What each pass reads from disk as a whole.
    """

    in_ram: frozenset[str]
    ram_bytes: int
    disk_bytes: int


@dataclass(frozen=True)
class PhaseResidency:
    """The blocks of one phase, divided into resident and streamed ones."""

    resident: tuple[BlockDemand, ...]
    streamed: tuple[BlockDemand, ...]

    @cached_property
    def resident_bytes(self) -> int:
        return sum(block.weight_bytes for block in self.resident)

    @cached_property
    def streamed_bytes(self) -> int:
        return sum(block.weight_bytes for block in self.streamed)

    @cached_property
    def link_bytes(self) -> int:
        """What each pass copies to the device."""
        return sum(block.link_bytes for block in self.streamed)

    @cached_property
    def through_slots(self) -> tuple[BlockDemand, ...]:
        """The blocks that each pass copies, in the order it needs them: a tied head is last."""
        copied = [block for block in self.streamed if block.link_bytes]
        return tuple(sorted(copied, key=lambda block: not block.is_layer))

    @cached_property
    def host_splits(self) -> tuple[HostSplit, ...]:
        """From nothing in RAM to everything; each next one takes more RAM and less disk."""
        splits: list[HostSplit] = []
        for split in sorted(self._even_splits(), key=lambda each: each.ram_bytes):
            if not splits or split.disk_bytes < splits[-1].disk_bytes:
                splits.append(split)
        return tuple(splits)

    def _even_splits(self) -> Iterator[HostSplit]:
        for count in range(len(self.streamed) + 1):
            positions = spread(len(self.streamed), count)
            in_ram = [self.streamed[i] for i in positions]
            on_disk = [block for i, block in enumerate(self.streamed) if i not in positions]
            yield HostSplit(
                in_ram=frozenset(block.name for block in in_ram),
                ram_bytes=sum(block.weight_bytes for block in in_ram),
                disk_bytes=sum(block.link_bytes for block in on_disk),
            )


def phase_residencies(model: ModelDemands, phase: Phase) -> tuple[PhaseResidency, ...]:
    """Every number of evenly spread resident layers, with every choice of the other blocks."""
    blocks = [block for block in model.blocks if block.phase == phase and not block.stays_resident]
    layers = [block for block in blocks if block.is_layer]
    others = [block for block in blocks if not block.is_layer]
    found = []
    for count in range(len(layers) + 1):
        chosen = {layers[i].name for i in spread(len(layers), count)}
        for some in _subsets(others):
            names = chosen | {block.name for block in some}
            found.append(
                PhaseResidency(
                    resident=tuple(block for block in blocks if block.name in names),
                    streamed=tuple(block for block in blocks if block.name not in names),
                )
            )
    return tuple(found)


def _subsets(blocks: Sequence[BlockDemand]) -> Iterator[tuple[BlockDemand, ...]]:
    for size in range(len(blocks) + 1):
        yield from combinations(blocks, size)


@dataclass(frozen=True)
class Residency:
    """Both phases together; a causal model's encode phase is empty."""

    pinned_bytes: int
    encode: PhaseResidency
    decode: PhaseResidency

    @cached_property
    def resident_bytes(self) -> int:
        return self.pinned_bytes + self.encode.resident_bytes + self.decode.resident_bytes

    @cached_property
    def slot_sizes(self) -> tuple[int, ...]:
        """Bytes of each device slot: of the largest block that uses it, of either phase."""
        orders = (self.encode.through_slots, self.decode.through_slots)
        count = min(SLOTS, max(map(len, orders)))
        return tuple(
            max(block.weight_bytes for order in orders for block in order[slot::count])
            for slot in range(count)
        )

    @cached_property
    def slot_bytes(self) -> int:
        return sum(self.slot_sizes)

    @cached_property
    def staging_bytes(self) -> int:
        """What disk reads need of pinned RAM, if there are any."""
        return STAGING_BUFFERS * max(self.slot_sizes, default=0)

    @cached_property
    def streamed_bytes(self) -> int:
        return self.encode.streamed_bytes + self.decode.streamed_bytes

    @cached_property
    def streamed_names(self) -> frozenset[str]:
        return frozenset(b.name for b in (*self.encode.streamed, *self.decode.streamed))

    @property
    def device_bytes(self) -> int:
        return self.resident_bytes + self.slot_bytes

    @property
    def least_ram_bytes(self) -> int:
        """Bytes of pinned RAM, with as much as possible left on disk."""
        return min(self.streamed_bytes, self.staging_bytes)


def residencies(model: ModelDemands) -> Iterator[Residency]:
    """Every way to divide the model's blocks into resident and streamed ones."""
    pinned_bytes = sum(block.weight_bytes for block in model.blocks if block.stays_resident)
    decode = phase_residencies(model, "decode")
    for encode in phase_residencies(model, "encode"):
        for each in decode:
            yield Residency(pinned_bytes, encode, each)


@dataclass(frozen=True, kw_only=True)
class HostPlacement:
    """Where the streamed blocks of both phases are."""

    encode: HostSplit
    decode: HostSplit
    staging_bytes: int

    @property
    def ram_bytes(self) -> int:
        return self.encode.ram_bytes + self.decode.ram_bytes

    @property
    def in_ram(self) -> frozenset[str]:
        return self.encode.in_ram | self.decode.in_ram


def host_placements(
    residency: Residency, ram_bytes: int, *, reads_into_slots: bool
) -> Iterator[HostPlacement]:
    """The ways to place the streamed blocks that fit the RAM and leave the disk least to do.

    Args:
        residency: What is streamed.
        ram_bytes: Bytes of RAM for streamed blocks and staging buffers.
        reads_into_slots: Whether disk reads land in the device's own slots, as
            on a CPU box, and need no staging buffers.
    """
    encode, decode = residency.encode.host_splits, residency.decode.host_splits
    if residency.streamed_bytes <= ram_bytes:
        yield HostPlacement(encode=encode[-1], decode=decode[-1], staging_bytes=0)
        return
    staging_bytes = 0 if reads_into_slots else residency.staging_bytes
    left = ram_bytes - staging_bytes
    sizes = [split.ram_bytes for split in encode]
    for split in decode:
        fitting = bisect_right(sizes, left - split.ram_bytes)
        if fitting:
            yield HostPlacement(
                encode=encode[fitting - 1], decode=split, staging_bytes=staging_bytes
            )
