"""A transformers model whose tensors are views of a loaded store."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from accelerate import init_empty_weights
from torch.overrides import TorchFunctionMode
from transformers import GenerationConfig

from engine.checkpoint.architecture import model_class_of
from engine.int8.linear import ComputeMode, Float32Int8Linear, Int8Linear
from engine.interface import ModelLoadError
from engine.layout.blocks import BlockFinder, ModelLayout, TensorLayout
from engine.layout.skeleton import HALF_DTYPES, default_dtype, lookup_tables
from engine.model.embeddings import HostEmbedding, NarrowEmbedding, NarrowHead
from engine.quiet import quiet_libraries

# Views of one block's tensors, by their names in the store's files.
Views = Mapping[str, torch.Tensor]


def empty_model(config: Any, *, dtype: torch.dtype) -> Any:
    """A model in evaluation mode with real buffers, and parameters without memory.

    Buffers that no file holds, such as rotary frequencies, are computed when a
    model is built; on the meta device they would be lost.
    """
    with (
        quiet_libraries(),
        default_dtype(dtype),
        init_empty_weights(include_buffers=False),
        _EmptyOnMeta(),
    ):
        return model_class_of(config)._from_config(config, dtype=dtype).eval()


def require_model(model: Any, layout: ModelLayout) -> None:
    """Refuse a layout that is not one of this model.

    Args:
        model: A model from empty_model.
        layout: Layout of a store, whose manifest may be damaged or another's.

    Raises:
        ModelLoadError: A tensor or a block is missing, left over or another one.
    """
    state = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    int8 = {t.model_name.removesuffix("weight") for t in layout.tensors if t.quantised}
    named = {t.model_name for t in layout.tensors if t.role != "format"} | layout.ties.keys()
    wrong = sorted(named ^ (state.keys() | {f"{linear}SCB" for linear in int8}))
    wrong += [
        tensor.model_name
        for tensor in layout.tensors
        # A linear of transformers' Conv1D is transposed in the store.
        if state.get(tensor.model_name, tensor.shape) not in (tensor.shape, tensor.shape[::-1])
    ]
    block_of, tables = BlockFinder(model), lookup_tables(model)
    for block in layout.blocks:
        names = [tensor.model_name for tensor in block.tensors]
        wrong += [name for name in names if block_of(name) != (block.kind, block.name)]
        if block.is_lookup and not tables.issuperset(names):
            wrong.append(block.name)
    if wrong:
        raise ModelLoadError(
            f"the store's manifest does not describe this model: it is wrong about {wrong[0]}; "
            "remove the store's folder, and `tgp-jobs prepare` makes it again"
        )


class _EmptyOnMeta(TorchFunctionMode):
    """Lets torch.empty, which parameters begin with, take no memory.

    init_empty_weights has each allocated first and moves it then. What is freed
    so stays with the process as address space, which its limits may count.
    """

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> torch.Tensor:
        options = dict(kwargs or {})
        if func is torch.empty:
            options["device"] = "meta"
        result: torch.Tensor = func(*args, **options)
        return result


def put_int8_linears(model: Any, layout: ModelLayout, *, mode: ComputeMode) -> None:
    """Replace the linears that are int8 in the store.

    Args:
        model: A model from empty_model.
        layout: Layout of the store, which says which they are.
        mode: How they multiply.
    """
    # What transformers keeps in float32, because its products overflow float16.
    kept = set(model._keep_in_fp32_modules or ())
    for tensor in layout.tensors:
        if tensor.quantised:
            in_float32 = not kept.isdisjoint(tensor.model_name.split("."))
            kind = Float32Int8Linear if in_float32 else Int8Linear
            out_features, in_features = tensor.shape
            name = tensor.model_name.rpartition(".")[0]
            model.set_submodule(name, kind(in_features, out_features, mode=mode))


def put_narrow_tables(model: Any, layout: ModelLayout) -> None:
    """Replace the embeddings and the head that are in half precision where all else is not."""
    for block in layout.blocks:
        if block.kind not in ("embedding", "head") or layout.dtype in HALF_DTYPES:
            continue
        for tensor in block.tensors:
            if tensor.dtype in HALF_DTYPES:
                shared = tensor.model_name
                aliases = [alias for alias, name in layout.ties.items() if name == shared]
                for name in (shared, *aliases):
                    _put_narrow_table(model, name.rpartition(".")[0])


def _put_narrow_table(model: Any, name: str) -> None:
    plain = model.get_submodule(name)
    is_embedding = isinstance(plain, torch.nn.Embedding)
    model.set_submodule(name, NarrowEmbedding(plain) if is_embedding else NarrowHead(plain))


def assign(model: Any, tensors: Iterable[TensorLayout], views: Views) -> None:
    """Make a block's views the model's tensors; a block's format marks are left out."""
    for tensor in tensors:
        if tensor.role != "format":
            set_tensor(model, tensor.model_name, views[tensor.name])


def set_tensor(model: Any, name: str, tensor: torch.Tensor) -> None:
    """Put a tensor in the place of a parameter or a buffer."""
    owner_name, _, leaf = name.rpartition(".")
    owner = model.get_submodule(owner_name)
    if leaf in owner._parameters:
        owner._parameters[leaf] = torch.nn.Parameter(tensor, requires_grad=False)
    else:
        owner._buffers[leaf] = tensor


def finish_model(model: Any, ties: Mapping[str, str], device: torch.device, folder: Path) -> None:
    """Tie what is tied, move computed buffers to the device and read generation settings.

    Raises:
        ModelLoadError: Something was not given a tensor.
    """
    for alias, name in ties.items():
        owner_name, _, leaf = name.rpartition(".")
        owner = model.get_submodule(owner_name)
        shared = getattr(owner, leaf)
        # A matrix that stays on the host is no tensor that others could share.
        if not isinstance(owner, HostEmbedding) and not shared.is_meta:
            set_tensor(model, alias, shared.data)
    for module in model.modules():
        for leaf, buffer in module._buffers.items():
            if buffer is not None and buffer.device != device:
                module._buffers[leaf] = buffer.to(device)
    empty = [name for name, each in model.named_parameters() if each.is_meta]
    if empty:
        raise ModelLoadError(f"the store has nothing for {empty[0]} and {len(empty) - 1} more")
    with suppress(OSError):
        model.generation_config = GenerationConfig.from_pretrained(folder, local_files_only=True)
