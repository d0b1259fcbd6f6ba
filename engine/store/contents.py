"""What a store of a checkpoint will hold, file by file, and where each tensor comes from."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Set
from dataclasses import dataclass
from typing import Any

import torch
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import WeightConverter, rename_source_key
from transformers.pytorch_utils import Conv1D

from engine.checkpoint.architecture import name_in_text_half
from engine.checkpoint.folder import Checkpoint
from engine.checkpoint.tensors import CheckpointTensors, StoreUnsupportedError, refuse_tensors
from engine.layout.blocks import (
    BlockLayout,
    ModelLayout,
    TensorLayout,
    layout_of_skeleton,
    with_narrow_tables,
)
from engine.layout.skeleton import (
    int8_linears,
    int8_skeleton,
    make_other_linears_int8,
    stated_dtype,
)

# Ends of the names of files that only one of the two readers takes.
ENGINE_ONLY = "engine"


PLAIN_ONLY = "plain"


@dataclass(frozen=True, kw_only=True)
class StoreFile:
    """One safetensors file.

    Attributes:
        name: Name of the file in the store's folder.
        tensors: Its tensors in the order they are written in.
        read_by_transformers: Whether plain transformers reads it: all but the
            int8 form of linears that it keeps in float, and narrow tables.
    """

    name: str
    tensors: tuple[TensorLayout, ...]
    read_by_transformers: bool

    @property
    def bytes(self) -> int:
        return sum(tensor.bytes for tensor in self.tensors)


@dataclass(frozen=True, kw_only=True)
class StoreContents:
    """What to write and where it comes from.

    Attributes:
        files: Files in execution order.
        layout: The tensors that the engine reads from them.
        load_dtype: Dtype that transformers would load the checkpoint in.
        source_names: The checkpoint's tensor for each name in the state dict.
        transposed: Names of weights that the checkpoint has as [in, out].
    """

    files: tuple[StoreFile, ...]
    layout: ModelLayout
    load_dtype: torch.dtype
    source_names: Mapping[str, str]
    transposed: frozenset[str]

    @property
    def bytes(self) -> int:
        return sum(file.bytes for file in self.files)


def contents_of(checkpoint: Checkpoint, *, dtype: torch.dtype | None = None) -> StoreContents:
    """Plan a store; nothing but headers is read, and tied weights to compare them.

    Args:
        checkpoint: The checkpoint that the store is made of.
        dtype: Dtype of what is not int8; None for the checkpoint's own as
            dtype="auto", the default of plain transformers, finds it.

    Raises:
        ModelLoadError: The checkpoint lacks tensors or they have other shapes.
        StoreUnsupportedError: Its tensors have to be merged or split, or to be
            computed because the checkpoint has them not.
    """
    tensors = checkpoint.tensors
    load_dtype = dtype or stated_dtype(checkpoint.config) or tensors.first_float_dtype()
    model = int8_skeleton(checkpoint.config, dtype=load_dtype)
    sources = _renamed(model, tensors.names(), in_text_half=checkpoint.is_text_half)
    aliases = _settle_tied(model, sources, tensors)
    plain_layout = layout_of_skeleton(model, dtype=load_dtype, aliases=aliases)
    make_other_linears_int8(model, dtype=load_dtype)
    layout = layout_of_skeleton(model, dtype=load_dtype, aliases=aliases)

    def own_dtype(tensor: TensorLayout) -> torch.dtype | None:
        source = sources.get(tensor.model_name)
        return None if source is None else tensors.tensor(source).dtype

    layout = with_narrow_tables(layout, model, own_dtype)
    transposed = frozenset(
        f"{name}.weight" for name, linear in int8_linears(model) if linear.source_cls is Conv1D
    )
    plan = StoreContents(
        files=_files(plain_layout, layout),
        layout=layout,
        load_dtype=load_dtype,
        source_names=sources,
        transposed=transposed,
    )
    _refuse_incomplete(checkpoint, plan, set(model._keys_to_ignore_on_load_missing or ()))
    return plan


def _renamed(model: Any, names: Iterable[str], *, in_text_half: bool) -> dict[str, str]:
    """The checkpoint's name of each name in the state dict, by the library's renamings."""
    conversions = get_model_conversion_mapping(model)
    converters = [each for each in conversions if isinstance(each, WeightConverter)]
    renamings = [each for each in conversions if not isinstance(each, WeightConverter)]
    state = model.state_dict()
    found: dict[str, str] = {}
    for source in names:
        name = name_in_text_half(source) if in_text_half else source
        target, merged = rename_source_key(
            name, renamings, converters, model.base_model_prefix, state
        )
        if merged is not None:
            raise StoreUnsupportedError(
                f"transformers merges or splits the checkpoint's {source} when it loads it"
            )
        if target not in state and name in state:
            target = name
        if target in state:
            found[target] = source
    model._weight_conversions = [each for each in conversions if each.was_used()]
    return found


def _settle_tied(model: Any, sources: dict[str, str], tensors: CheckpointTensors) -> set[str]:
    """Decide as PreTrainedModel.tie_weights which names are aliases, and return those.

    A checkpoint may hold a tied weight under either name or under both; only
    if both are there and differ they are not tied, whatever the configuration
    says. Adds to sources what is found under another name only.
    """
    aliases = set()
    for alias, name in model.all_tied_weights_keys.items():
        if alias in sources and name not in sources:
            sources[name] = sources[alias]
        if alias not in sources or _are_equal(tensors, sources[alias], sources[name]):
            aliases.add(alias)
            sources.pop(alias, None)
    return aliases


def _are_equal(tensors: CheckpointTensors, one: str, other: str) -> bool:
    a, b = tensors.tensor(one), tensors.tensor(other)
    if one == other or a.data_ptr() == b.data_ptr():
        return True
    if a.shape != b.shape or a.dtype != b.dtype:
        return False
    # On mapped memory this takes no more of its own than a page.
    return torch.equal(a, b)


def _files(plain: ModelLayout, engine: ModelLayout) -> tuple[StoreFile, ...]:
    """A file of what both take for each block, and beside it what only one takes."""
    files = []
    for plain_block, engine_block in zip(plain.blocks, engine.blocks, strict=True):
        both = _in_both(plain_block, engine_block)
        for suffix, members, is_plain in (
            ("", both, True),
            (f".{ENGINE_ONLY}", set(engine_block.tensors) - both, False),
            (f".{PLAIN_ONLY}", set(plain_block.tensors) - both, True),
        ):
            if members:
                files.append(
                    StoreFile(
                        name=f"{plain_block.name}{suffix}.safetensors",
                        tensors=aligned(members),
                        read_by_transformers=is_plain,
                    )
                )
    return tuple(files)


def _in_both(one: BlockLayout, other: BlockLayout) -> set[TensorLayout]:
    return set(one.tensors) & set(other.tensors)


def aligned(tensors: Iterable[TensorLayout]) -> tuple[TensorLayout, ...]:
    """Order tensors so that each starts at a multiple of its size's largest power of two.

    safetensors allows no gaps. If sizes come by falling powers of two that
    divide them, whatever stands before a tensor is a multiple of its own.
    """

    def order(tensor: TensorLayout) -> tuple[int, str]:
        return (-(tensor.bytes & -tensor.bytes), tensor.name)

    return tuple(sorted(tensors, key=order))


def _refuse_incomplete(checkpoint: Checkpoint, plan: StoreContents, computed: Set[str]) -> None:
    weights = [t for file in plan.files for t in file.tensors if t.role in ("int8", "plain")]
    missing = [t.name for t in weights if t.model_name not in plan.source_names]
    if missing and computed >= set(missing):
        raise StoreUnsupportedError(f"transformers computes {missing[0]} when it loads a model")
    misshapen = [
        t.name
        for t in weights
        if t.model_name in plan.source_names and not _fits(t, plan, checkpoint.tensors)
    ]
    refuse_tensors(checkpoint.folder, missing=missing, misshapen=misshapen)


def _fits(tensor: TensorLayout, plan: StoreContents, tensors: CheckpointTensors) -> bool:
    shape = tuple(tensors.tensor(plan.source_names[tensor.model_name]).shape)
    if tensor.model_name in plan.transposed:
        shape = shape[::-1]
    return shape == tensor.shape
