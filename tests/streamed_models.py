"""Streamed tiny models on one device, and what plain transformers says to the same prompts."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch

from engine.model.loaded import Int8Model
from engine.model.place import place_model
from engine.plan.from_layout import demands_of_layout
from engine.plan.plan import Tier
from engine.store.prepare import Int8Store
from tests.placements import tiers_of
from tests.plain_models import greedy, plain_model
from tests.stores import CPU, ignore, never, prepare
from tests.tiny_checkpoints import ALIASES, checkpoint_folder, tiny_tokenizer

NEW_TOKENS = 8
PROMPTS = (
    "The worker claims a shard in the database and renews its lease while it works on",
    "Every prompt is written to the database before",
    "The queue holds",
    "A lease",
    "A",
)
# The greedy tokens for an alias, a mode and some prompts in one batch.
PlainTokens = Callable[[str, str, tuple[str, ...]], list[Any]]


@dataclass(frozen=True)
class StreamedModels:
    """Everything here is for one device and dtype."""

    device: torch.device
    dtype: torch.dtype

    def stores(self, scratch: Path) -> dict[str, Int8Store]:
        """A store of each tiny checkpoint, by alias."""
        return {
            alias: prepare(
                checkpoint_folder(alias, scratch),
                scratch / alias,
                device=self.device,
                dtype=self.dtype,
            )
            for alias in ALIASES
        }

    def plain(self, stores: dict[str, Int8Store]) -> PlainTokens:
        """Those of plain transformers, which computes each but once."""
        known: dict[tuple[str, str, tuple[str, ...]], list[Any]] = {}

        def tokens(alias: str, mode: str, prompts: tuple[str, ...]) -> list[Any]:
            key = (alias, mode, prompts)
            if key not in known:
                model = plain_model(stores[alias], mode=mode, device=self.device, dtype=self.dtype)
                known[key] = greedy(model, stores[alias], prompts, new_tokens=NEW_TOKENS)
            return known[key]

        return tokens

    @contextmanager
    def placed(self, store: Int8Store, placement: str, **options: Any) -> Iterator[Int8Model]:
        """The model as one of PLACEMENTS says; options are place_model's."""
        tiers = placement_of(store, placement)
        with at_tiers(store, tiers, device=self.device, **options) as model:
            yield model


def placement_of(store: Int8Store, placement: str) -> dict[str, Tier]:
    """The placement's tiers, but for what cannot be streamed."""
    tiers = tiers_of(store.layout, placement)
    demands = demands_of_layout(store.config, "tiny", store.layout, on_gpu=False)
    resident = {block.name: "resident" for block in demands.blocks if block.stays_resident}
    return tiers | cast(dict[str, Tier], resident)


@contextmanager
def at_tiers(store: Int8Store, tiers: dict[str, Tier], **options: Any) -> Iterator[Int8Model]:
    options = {"device": CPU, "mode": "llm_int8", "tokenizer": tiny_tokenizer(), **options}
    model = place_model(store, tiers, on_progress=ignore, should_stop=never, **options)
    try:
        yield model
    finally:
        model.free()


def tokens_of(model: Int8Model, store: Int8Store, prompts: tuple[str, ...] = PROMPTS) -> list[Any]:
    return greedy(model.model, store, prompts, new_tokens=NEW_TOKENS)
