"""A random model made int8, whose layers are streamed: from disk, or on a GPU box from RAM."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from engine.device import plain_dtype
from engine.model.loaded import Int8Model
from engine.model.place import place_model
from engine.plan.plan import Tier
from tests.stores import ignore, never, prepare
from tests.tiny_checkpoints import tiny_tokenizer


def streamed_maker(model: Any, folder: Path, device: torch.device) -> Callable[[], Int8Model]:
    """Makes the same model again and again; all but its layers are resident.

    Args:
        model: A random transformers model; its store is made here, once.
        folder: Where; its files are dropped from the page cache.
        device: Where to compute.
    """
    model.save_pretrained(folder / "checkpoint")
    tiny_tokenizer().save_pretrained(folder / "checkpoint")
    store = prepare(folder / "checkpoint", folder / "stores", dtype=plain_dtype(device))
    streamed: Tier = "ram" if device.type == "cuda" else "disk"
    tiers: dict[str, Tier] = {
        block.name: streamed if block.kind in ("encoder", "decoder") else "resident"
        for block in store.layout.blocks
    }

    def make() -> Int8Model:
        for file in store.folder.iterdir():
            drop_from_page_cache(file)
        return place_model(
            store,
            tiers,
            device,
            tokenizer=tiny_tokenizer(),
            mode="llm_int8",
            on_progress=ignore,
            should_stop=never,
        )

    return make


def drop_from_page_cache(file: Path) -> None:
    """So that the first pass reads the disk; later ones read around the cache."""
    descriptor = os.open(file, os.O_RDONLY)
    try:
        os.fsync(descriptor)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(descriptor)
