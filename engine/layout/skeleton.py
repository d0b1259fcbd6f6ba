"""A model without weights, with its linears made int8 by transformers' own rules.

Everything here is on the meta device: names, shapes and dtypes, no memory.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from copy import deepcopy
from typing import Any

import torch
from transformers import BitsAndBytesConfig
from transformers.core_model_loading import build_glob_alternation
from transformers.quantizers.auto import AutoHfQuantizer

from engine.checkpoint.architecture import model_class_of
from engine.int8.linear import OUTLIER_THRESHOLD
from engine.layout.families import family_of
from engine.quiet import quiet_libraries

# Classes that multiply as torch.nn.Linear does, in another order of operations.
_PLAIN_LINEARS = frozenset({"FalconLinear"})
HALF_DTYPES = (torch.float16, torch.bfloat16)


def int8_settings(config: Any) -> BitsAndBytesConfig:
    """The quantisation_config of an int8 model with this configuration."""
    # transformers leaves the head in float by itself only where nothing is named.
    kept = family_of(config).kept_in_float
    return BitsAndBytesConfig(
        load_in_8bit=True,
        llm_int8_threshold=OUTLIER_THRESHOLD,
        llm_int8_skip_modules=["lm_head", *kept] if kept else None,
    )


def int8_skeleton(config: Any, *, dtype: torch.dtype) -> Any:
    """Build a model on the meta device as transformers loads it in int8.

    The linears that transformers keeps in fp32 (`_keep_in_fp32_modules`, T5's
    `wo`) are floats; make_other_linears_int8 makes them int8 too.

    Args:
        config: A transformers configuration.
        dtype: Dtype of what is not int8.
    """
    with quiet_libraries(), _on_meta(dtype):
        # A copy, into which the dtype is written; the caller's tells of its checkpoint.
        model = model_class_of(config)._from_config(deepcopy(config), dtype=dtype)
        _make_linears_int8(model, dtype)
    return model


def make_other_linears_int8(model: Any, *, dtype: torch.dtype) -> None:
    """Make int8 those linears of a skeleton that transformers does not.

    It keeps some in fp32, and passes over what only derives from torch's Linear.
    """
    model._keep_in_fp32_modules = set()
    for module in model.modules():
        if type(module).__name__ in _PLAIN_LINEARS:
            module.__class__ = torch.nn.Linear
    with quiet_libraries(), _on_meta(dtype):
        _make_linears_int8(model, dtype)


def _make_linears_int8(model: Any, dtype: torch.dtype) -> None:
    # Imported where it is kept quiet: it warns of kernels that are not needed here.
    from bitsandbytes.nn import Int8Params

    quantizer = AutoHfQuantizer.from_config(int8_settings(model.config), pre_quantized=False)
    quantizer.preprocess_model(model=model, dtype=dtype, device_map={"": "cpu"})
    for _, linear in int8_linears(model):
        # As after quantising: bitsandbytes then names the scales itself.
        rows = linear.weight.shape[0]
        linear.weight = Int8Params(
            torch.empty(linear.weight.shape, dtype=torch.int8),
            requires_grad=False,
            SCB=torch.empty(rows, dtype=torch.float32),
        )


def int8_linears(model: Any) -> Iterator[tuple[str, Any]]:
    """The int8 linears of a skeleton and their names."""
    from bitsandbytes.nn import Linear8bitLt

    for name, module in model.named_modules():
        if isinstance(module, Linear8bitLt):
            yield name, module


def lookup_tables(model: Any) -> set[str]:
    """The weights of plain embeddings and of a plain head, by their names in the state dict.

    Not those of subclasses, which may compute with them in ways of their own,
    nor what is tied to one.
    """
    head = model.get_output_embeddings()
    tables = {
        f"{name}.weight"
        for name, module in model.named_modules(remove_duplicate=False)
        if (type(module) is torch.nn.Embedding and module.max_norm is None)
        or (module is head and type(module) is torch.nn.Linear)
    }
    tied: dict[str, set[str]] = {}
    for alias, name in model.all_tied_weights_keys.items():
        tied.setdefault(name, {name}).add(alias)
    for names in tied.values():
        if not names <= tables:
            tables -= names
    return tables


def stated_dtype(config: Any) -> torch.dtype | None:
    """What a configuration says that its checkpoint's floats are."""
    stated = getattr(config, "dtype", None)
    if isinstance(stated, str):
        stated = getattr(torch, stated, None)
    return stated if isinstance(stated, torch.dtype) else None


def dtype_chooser(model: Any, dtype: torch.dtype) -> Callable[[str, torch.dtype], torch.dtype]:
    """The dtype in which transformers loads a float tensor, by its name and skeleton dtype.

    As convert_and_load_state_dict_in_model in transformers/core_model_loading.py.
    """
    plan = model._get_dtype_plan(dtype)
    if not plan:
        return lambda _name, own: own
    alternation, pattern_by_group, _ = build_glob_alternation(list(plan))

    def choose(name: str, own: torch.dtype) -> torch.dtype:
        match = alternation.search(name)
        return own if match is None else plan[pattern_by_group[match.lastgroup]]

    return choose


@contextmanager
def _on_meta(dtype: torch.dtype) -> Iterator[None]:
    """New tensors have no memory, and floating ones this dtype."""
    with default_dtype(dtype), torch.device("meta"):
        yield


@contextmanager
def default_dtype(dtype: torch.dtype) -> Iterator[None]:
    """New floating tensors have this dtype."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)
