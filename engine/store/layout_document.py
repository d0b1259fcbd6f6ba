"""A model's layout as JSON in a store's manifest."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict
from typing import Any, get_args

import torch

from engine.layout.blocks import BlockKind, BlockLayout, ModelLayout, TensorLayout, TensorRole
from engine.store.header import DTYPE_NAMES, DTYPES, whole_numbers


def document_of(layout: ModelLayout) -> dict[str, Any]:
    """Turn a layout into what JSON can hold; dtypes have the names of safetensors."""

    def value(each: Any) -> Any:
        return DTYPE_NAMES.get(each, each) if isinstance(each, torch.dtype) else each

    return asdict(layout, dict_factory=lambda items: {name: value(each) for name, each in items})


def layout_from(document: Any) -> ModelLayout:
    """Read what document_of gives.

    Raises:
        ValueError, KeyError, TypeError or AttributeError: It is no layout.
    """
    layout = ModelLayout(
        blocks=tuple(_block(**block) for block in document["blocks"]),
        dtype=DTYPES[document["dtype"]],
        ties={_text(alias): _text(name) for alias, name in document["ties"].items()},
    )
    if not layout.dtype.is_floating_point:
        raise ValueError("the dtype of what is not int8 is a floating one")
    _require_unique(block.name for block in layout.blocks)
    _require_unique(tensor.name for tensor in layout.tensors)
    names = [tensor.model_name for tensor in layout.tensors]
    _require_unique([*names, *layout.ties])
    if not set(names).issuperset(layout.ties.values()):
        raise ValueError("a tied weight is not in the store")
    return layout


def _block(
    *, name: str, kind: BlockKind, is_lookup: bool, tensors: list[Mapping[str, Any]]
) -> BlockLayout:
    return BlockLayout(
        name=_text(name),
        kind=_one_of(kind, get_args(BlockKind)),
        is_lookup=_one_of(is_lookup, (True, False)),
        tensors=tuple(_tensor(**tensor) for tensor in tensors),
    )


def _tensor(
    *,
    name: str,
    model_name: str,
    dtype: str,
    shape: list[int],
    role: TensorRole,
    is_parameter: bool,
) -> TensorLayout:
    tensor = TensorLayout(
        name=_text(name),
        model_name=_text(model_name),
        dtype=DTYPES[dtype],
        shape=whole_numbers(shape),
        role=_one_of(role, get_args(TensorRole)),
        is_parameter=_one_of(is_parameter, (True, False)),
    )
    if tensor.quantised != (tensor.dtype is torch.int8) or (tensor.quantised and len(shape) != 2):
        raise ValueError(f"{name} has not the form of its role")
    return tensor


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError("a name is a text")
    value.encode()
    return value


def _one_of(value: Any, allowed: tuple[Any, ...]) -> Any:
    # 1 equals True, and JSON has both.
    if not any(type(value) is type(each) and value == each for each in allowed):
        raise ValueError(f"{str(value)[:100]} is none of {allowed}")
    return value


def _require_unique(names: Iterable[str]) -> None:
    names = list(names)
    if len(set(names)) < len(names):
        raise ValueError("a name stands twice")
