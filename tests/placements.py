"""Placements of a model's blocks, and what a store's files hold by block."""

from __future__ import annotations

from itertools import cycle

import torch
from safetensors.torch import load_file

from engine.layout.blocks import ModelLayout
from engine.plan.plan import Tier
from engine.store.read import StoredBlock
from engine.weights.loader import LoadedBlock
from tests.stores import read_block

PLACEMENTS: dict[str, tuple[Tier, ...]] = {
    "all-resident": ("resident",),
    "all-in-ram": ("ram",),
    "all-on-disk": ("disk",),
    "mixed": ("resident", "ram", "disk"),
}


def tiers_of(layout: ModelLayout, placement: str) -> dict[str, Tier]:
    """The placement's tiers, in turn."""
    tiers = cycle(PLACEMENTS[placement])
    return {block.name: next(tiers) for block in layout.blocks}


def bytes_by_tier(layout: ModelLayout, tiers: dict[str, Tier]) -> dict[Tier, int]:
    """What the layout says of each tier of memory."""
    expected: dict[Tier, int] = {"resident": 0, "ram": 0, "disk": 0}
    for block in layout.blocks:
        if tiers[block.name] != "disk":
            expected[tiers[block.name]] += block.bytes
    return expected


def tensors_wherever(block: LoadedBlock) -> dict[str, torch.Tensor]:
    """A block's tensors, read from the disk if that is its tier."""
    if block.tier != "disk":
        return dict(block.tensors)
    return block.stored.views(read_block(block.stored))


def tensors_by_safetensors(block: StoredBlock) -> dict[str, torch.Tensor]:
    tensors: dict[str, torch.Tensor] = {}
    for segment in block.segments:
        tensors |= load_file(segment.path)
    return tensors


def differing(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> list[str]:
    """Names of tensors that are not the same in both, to the byte."""
    return [
        name
        for name in sorted(ours.keys() | theirs.keys())
        if name not in ours
        or name not in theirs
        or ours[name].dtype != theirs[name].dtype
        or not torch.equal(ours[name].cpu(), theirs[name])
    ]
