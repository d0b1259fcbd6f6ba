"""What an int8 model consists of, from its configuration alone: no weights are read."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path
from typing import Any, Literal

import torch
from transformers import AutoConfig
from transformers.core_model_loading import revert_weight_conversion

from engine.layout.families import family_of
from engine.layout.skeleton import (
    HALF_DTYPES,
    dtype_chooser,
    int8_linears,
    int8_skeleton,
    lookup_tables,
    make_other_linears_int8,
    stated_dtype,
)

BlockKind = Literal["embedding", "encoder", "decoder", "rest", "head"]


# An int8 linear's weight [out, in], its scales [out] in float32 and its format []
# in uint8; "plain" is whatever is kept in float.
TensorRole = Literal["int8", "scales", "format", "plain"]


SHAPES = Path(__file__).parent / "shapes"


# The order in which a forward pass meets them, but for the norms of the rest.
_ORDER: tuple[BlockKind, ...] = ("embedding", "encoder", "decoder", "rest", "head")


@dataclass(frozen=True, kw_only=True)
class TensorLayout:
    """One tensor of an int8 model.

    Attributes:
        name: Name in the file that save_pretrained writes.
        model_name: Name in the model's state dict, where it may differ.
        is_parameter: Whether it is a parameter: not scales, formats or buffers.
    """

    name: str
    model_name: str
    dtype: torch.dtype
    shape: tuple[int, ...]
    role: TensorRole
    is_parameter: bool

    @property
    def quantised(self) -> bool:
        """Whether it is the weight of an int8 linear."""
        return self.role == "int8"

    @property
    def bytes(self) -> int:
        return prod(self.shape) * self.dtype.itemsize


@dataclass(frozen=True, kw_only=True)
class BlockLayout:
    """One transformer block, or what stands around them.

    Attributes:
        name: Name of the block, unique in its model.
        is_lookup: Whether it is an embedding of which the model takes nothing but
            lines, or the product with a head that is tied to it. Some models
            scale the lines, or number them in a way of their own.
    """

    name: str
    kind: BlockKind
    tensors: tuple[TensorLayout, ...]
    is_lookup: bool = False

    @property
    def bytes(self) -> int:
        return sum(tensor.bytes for tensor in self.tensors)


@dataclass(frozen=True, kw_only=True)
class ModelLayout:
    """What an int8 model consists of.

    Attributes:
        blocks: Blocks in execution order; a tied head is in the embedding.
        dtype: Dtype of what is not int8, where a tensor has none of its own.
        ties: Each alias of a tied weight and the weight it shares, by their
            names in the state dict. An alias is no tensor of its own.
        is_whole: Whether transformers alone can load it, because it merges or
            computes some of its tensors, so that no store is made of it.
    """

    blocks: tuple[BlockLayout, ...]
    dtype: torch.dtype
    ties: Mapping[str, str]
    is_whole: bool = False

    @property
    def tensors(self) -> tuple[TensorLayout, ...]:
        return tuple(tensor for block in self.blocks for tensor in block.tensors)

    @property
    def int8_bytes(self) -> int:
        """Bytes of all tensors, with scales."""
        return sum(block.bytes for block in self.blocks)

    @property
    def parameter_count(self) -> int:
        return sum(prod(tensor.shape) for tensor in self.tensors if tensor.is_parameter)


def config_of_shape(alias: str) -> Any:
    """The configuration of one of the big models of the catalogue, without a hub.

    Raises:
        KeyError: There is none of that alias.
    """
    path = SHAPES / f"{alias}.json"
    if not path.is_file():
        raise KeyError(alias)
    return AutoConfig.for_model(**json.loads(path.read_text(encoding="utf-8")))


def layout_of(
    config: Any,
    *,
    dtype: torch.dtype = torch.float16,
    as_transformers: bool = False,
    is_whole: bool = False,
) -> ModelLayout:
    """Lay out a model by its configuration.

    Args:
        config: A transformers configuration; a head is taken as tied or not
            as it says, and a checkpoint's own dtype as it says.
        dtype: Dtype of what is not int8.
        as_transformers: Whether to lay it out as transformers would have it: with
            the linears that it keeps in float, and without narrow tables.
        is_whole: Whether the model is known to be loaded whole; told from the
            configuration where it can be.
    """
    model = int8_skeleton(config, dtype=dtype)
    is_whole |= _is_loaded_whole(model)
    tied = set(model.all_tied_weights_keys)
    if family_of(config).has_own_head(config):
        tied -= {f"{name}.weight" for name in _names_of(model, model.get_output_embeddings())}
    if as_transformers or is_whole:
        plain = layout_of_skeleton(model, dtype=dtype, aliases=tied)
        return replace(plain, is_whole=is_whole)
    make_other_linears_int8(model, dtype=dtype)
    layout = layout_of_skeleton(model, dtype=dtype, aliases=tied)
    return with_narrow_tables(layout, model, lambda _: stated_dtype(config))


def layout_of_skeleton(model: Any, *, dtype: torch.dtype, aliases: Collection[str]) -> ModelLayout:
    """Lay out a skeleton.

    Args:
        model: A skeleton from int8_skeleton. Where it has `_weight_conversions`, those are
            the renamings that loading its checkpoint used, and saving reverts.
        dtype: Dtype of what is not int8.
        aliases: Names in the state dict that are no tensors of their own, because
            the weights are tied.
    """
    state = {name: t for name, t in model.state_dict().items() if name not in aliases}
    file_names = names_in_file(model, state)
    linears = {name for name, _ in int8_linears(model)}
    parameters = {name for name, _ in model.named_parameters(remove_duplicate=False)}
    choose_dtype = dtype_chooser(model, dtype)
    tables = lookup_tables(model)
    block_of = BlockFinder(model)
    tensors: dict[tuple[BlockKind, str], list[TensorLayout]] = {}
    for name, tensor in state.items():
        role = _role(tensor, name in parameters, name.rpartition(".")[0] in linears)
        is_cast = role == "plain" and tensor.is_floating_point()
        layout = TensorLayout(
            name=file_names[name],
            model_name=name,
            dtype=choose_dtype(name, tensor.dtype) if is_cast else tensor.dtype,
            shape=tuple(tensor.shape),
            role=role,
            is_parameter=name in parameters,
        )
        tensors.setdefault(block_of(name), []).append(layout)
    return ModelLayout(
        blocks=tuple(
            BlockLayout(
                name=name,
                kind=kind,
                tensors=tuple(members),
                is_lookup=kind == "embedding" and tables.issuperset(t.model_name for t in members),
            )
            for (kind, name), members in sorted(
                tensors.items(), key=lambda item: _ORDER.index(item[0][0])
            )
        ),
        dtype=dtype,
        ties={alias: model.all_tied_weights_keys[alias] for alias in sorted(aliases)},
    )


def with_narrow_tables(
    layout: ModelLayout, model: Any, own_dtype: Callable[[TensorLayout], torch.dtype | None]
) -> ModelLayout:
    """The layout with float32 embeddings and heads as narrow as in the checkpoint.

    Args:
        layout: The model's layout.
        model: A skeleton.
        own_dtype: What a tensor is in the checkpoint; None where that is not known.
    """
    tables = lookup_tables(model)

    def dtype_of(tensor: TensorLayout) -> torch.dtype:
        if tensor.dtype is torch.float32 and tensor.model_name in tables:
            own = own_dtype(tensor)
            if own in HALF_DTYPES:
                return own
        return tensor.dtype

    def narrow(block: BlockLayout) -> BlockLayout:
        if block.kind not in ("embedding", "head"):
            return block
        return replace(block, tensors=tuple(replace(t, dtype=dtype_of(t)) for t in block.tensors))

    return replace(layout, blocks=tuple(narrow(block) for block in layout.blocks))


def _role(tensor: torch.Tensor, is_parameter: bool, is_in_linear: bool) -> TensorRole:
    if tensor.dtype == torch.int8:
        return "int8"
    if is_parameter or not is_in_linear:
        return "plain"
    return "scales" if tensor.is_floating_point() else "format"


def names_in_file(model: Any, state: Mapping[str, torch.Tensor]) -> dict[str, str]:
    """What save_pretrained calls each tensor of a state dict.

    One that it merges or splits, such as a mixture's experts, keeps its name.
    """
    by_identity = {id(tensor): name for name, tensor in state.items()}
    saved = revert_weight_conversion(model, dict(state))
    renamed = {by_identity.get(id(tensor)): name for name, tensor in saved.items()}
    return {name: renamed.get(name, name) for name in state}


def _is_loaded_whole(model: Any) -> bool:
    """Whether saving a skeleton would split, merge or leave out some of its tensors."""
    state = model.state_dict()
    saved = {id(tensor) for tensor in revert_weight_conversion(model, dict(state)).values()}
    left_out = set(model._keys_to_ignore_on_save or ())
    return any(id(tensor) not in saved or name in left_out for name, tensor in state.items())


class BlockFinder:
    """Says which block a tensor of the state dict belongs to.

    Attributes:
        blocks: Kind and name of each block by the name of the module that holds it.
    """

    def __init__(self, model: Any) -> None:
        self.blocks: dict[str, tuple[BlockKind, str]] = {}
        self._add_transformer_blocks(model)
        for name, module in model.named_modules():
            if isinstance(module, torch.nn.Embedding) and self._within(name) is None:
                self.blocks[name] = ("embedding", "embedding")
        for name in _names_of(model, model.get_output_embeddings()):
            self.blocks[name] = ("head", "head")

    def __call__(self, tensor_name: str) -> tuple[BlockKind, str]:
        return self._within(tensor_name) or ("rest", "rest")

    def _within(self, name: str) -> tuple[BlockKind, str] | None:
        while name:
            name = name.rpartition(".")[0]
            if name in self.blocks:
                return self.blocks[name]
        return None

    def _add_transformer_blocks(self, model: Any) -> None:
        # What transformers never splits between devices is a block.
        block_classes = set(model._no_split_modules or ()) or _layer_classes(model)
        name_of = {id(module): name for name, module in model.named_modules()}
        in_encoder = set()
        if getattr(model.config, "is_encoder_decoder", False):
            in_encoder = {id(module) for module in model.get_encoder().modules()}
        counts: dict[BlockKind, int] = {"encoder": 0, "decoder": 0}
        for modules in model.modules():
            if not isinstance(modules, torch.nn.ModuleList):
                continue
            for block in modules:
                if type(block).__name__ in block_classes:
                    kind: BlockKind = "encoder" if id(block) in in_encoder else "decoder"
                    self.blocks[name_of[id(block)]] = (kind, f"{kind}-{counts[kind]:03d}")
                    counts[kind] += 1


def _layer_classes(model: Any) -> set[str]:
    """The classes of a model's layers, where transformers does not name them: BART's kin."""
    lists = [each for each in model.modules() if isinstance(each, torch.nn.ModuleList) and each]
    nested = {id(inner) for each in lists for inner in each.modules()} - {
        id(each) for each in lists
    }
    return {
        type(each[0]).__name__
        for each in lists
        if id(each) not in nested and type(each[0]).__name__.endswith(("Layer", "Block"))
    }


def _names_of(model: Any, wanted: Any) -> list[str]:
    return [name for name, module in model.named_modules() if module is wanted]
