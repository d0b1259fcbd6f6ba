"""What a store holds, in the model's terms."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch

from engine.interface import ModelLoadError
from engine.layout.blocks import ModelLayout, layout_of_skeleton, with_narrow_tables
from engine.layout.skeleton import int8_skeleton
from engine.store.prepare import Int8Store
from engine.store.read import block_names, open_block


@dataclass(frozen=True, kw_only=True)
class StoredLayout:
    """What a store holds, in the model's terms.

    Attributes:
        layout: Its blocks.
        ties: For each alias of a tied weight, the name it shares.
    """

    layout: ModelLayout
    ties: Mapping[str, str]


@dataclass(frozen=True, kw_only=True)
class OpenedStore:
    """A store and what it is to become.

    Attributes:
        store: Complete.
        alias: The model's, for messages.
        config: The store's.
        stored: What it holds.
        device: Where to compute.
        dtype: Of what is not int8.
    """

    store: Int8Store
    alias: str
    config: Any
    stored: StoredLayout
    device: torch.device
    dtype: torch.dtype


def open_store(
    store: Int8Store, alias: str, config: Any, *, device: torch.device, dtype: torch.dtype
) -> OpenedStore:
    """Find out what a store holds, from the headers of its files.

    Raises:
        ModelLoadError: A file is missing or damaged, or lacks a tensor.
    """
    with ExitStack() as files:
        blocks = [
            open_block(store.folder, name, store.manifest, files)
            for name in block_names(store.manifest)
        ]
        dtypes = {p.name: p.dtype for block in blocks for seg in block.segments for p in seg.places}
    stored = stored_layout(config, dtypes, dtype=dtype)
    return OpenedStore(
        store=store, alias=alias, config=config, stored=stored, device=device, dtype=dtype
    )


def stored_layout(
    config: Any, dtypes: Mapping[str, torch.dtype], *, dtype: torch.dtype
) -> StoredLayout:
    """Lay out a store's model.

    Args:
        config: The store's configuration.
        dtypes: Of the tensors in its files, by name. What of a tied weight is
            not among them is an alias, whatever the configuration says.
        dtype: Of what is not int8, but for embeddings and heads that the store
            has in half precision.

    Raises:
        ModelLoadError: The store lacks a tensor.
    """
    model = int8_skeleton(config, dtype=dtype, linears_kept_in_float=False)
    tied = model.all_tied_weights_keys
    whole = layout_of_skeleton(model, dtype=dtype, left_out=())
    missing = [each for each in whole.tensors if not dtypes.keys() & {each.name, each.model_name}]
    aliases = {each.model_name for each in missing if each.model_name in tied}
    lacking = [each.name for each in missing if each.model_name not in aliases]
    if lacking:
        raise ModelLoadError(
            f"the store lacks {len(lacking)} tensors of the model's architecture, {lacking[0]} "
            "first; remove its folder, and `tgp-jobs prepare` makes it again"
        )
    narrow = with_narrow_tables(
        whole, model, lambda each: dtypes.get(each.name, dtypes.get(each.model_name))
    )
    return StoredLayout(
        layout=narrow.without(aliases),
        ties={alias: tied[alias] for alias in aliases},
    )
