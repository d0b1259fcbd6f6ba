"""A transformers model whose tensors are views of a loaded store."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
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
from engine.layout.blocks import TensorLayout
from engine.layout.skeleton import HALF_DTYPES, default_dtype
from engine.model.embeddings import NarrowEmbedding, NarrowHead
from engine.quiet import quiet_libraries
from engine.store.opened import StoredLayout

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


def put_int8_linears(
    model: Any, stored: StoredLayout, *, mode: ComputeMode, in_float32: Callable[[str], bool]
) -> None:
    """Replace the linears that are int8 in the store.

    Args:
        model: From empty_model.
        stored: Says which they are.
        mode: How they multiply.
        in_float32: Whether a tensor's linear has to multiply in float32.
    """
    for tensor in stored.layout.tensors:
        if tensor.quantised:
            kind = Float32Int8Linear if in_float32(tensor.name) else Int8Linear
            out_features, in_features = tensor.shape
            name = tensor.model_name.rpartition(".")[0]
            model.set_submodule(name, kind(in_features, out_features, mode=mode))


def put_narrow_tables(model: Any, stored: StoredLayout, *, dtype: torch.dtype) -> None:
    """Replace the embeddings and the head that are narrower in the store than this dtype."""
    for block in stored.layout.blocks:
        if block.kind not in ("embedding", "head") or dtype in HALF_DTYPES:
            continue
        for tensor in block.tensors:
            if tensor.dtype in HALF_DTYPES:
                shared = tensor.model_name
                aliases = [alias for alias, name in stored.ties.items() if name == shared]
                for name in (shared, *aliases):
                    _put_narrow_table(model, name.rpartition(".")[0])


def _put_narrow_table(model: Any, name: str) -> None:
    plain = model.get_submodule(name)
    is_embedding = isinstance(plain, torch.nn.Embedding)
    model.set_submodule(name, NarrowEmbedding(plain) if is_embedding else NarrowHead(plain))


def assign(model: Any, tensors: Iterable[TensorLayout], views: Views) -> None:
    """Make a block's views the model's tensors; a block's format marks are left out.

    Raises:
        ModelLoadError: A tensor has another shape or dtype than the model's.
    """
    for tensor in tensors:
        if tensor.role == "format":
            continue
        view = views[tensor.name if tensor.name in views else tensor.model_name]
        if tuple(view.shape) != tensor.shape or view.dtype != tensor.dtype:
            raise ModelLoadError(
                f"the store holds {tensor.name} as {view.dtype} {list(view.shape)}, and the model "
                f"wants {tensor.dtype} {list(tensor.shape)}; remove the store's folder, and "
                "`tgp-jobs prepare` makes it again"
            )
        set_tensor(model, tensor.model_name, view)


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
        shared = getattr(model.get_submodule(owner_name), leaf)
        if not shared.is_meta:
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
