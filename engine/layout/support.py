"""Which architectures run here, told from a configuration alone."""

from __future__ import annotations

import inspect
from copy import deepcopy
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import torch
from transformers import DynamicCache

from engine.cache.memory import STATE_NAMES
from engine.cache.shape import CacheShape, UnsupportedLayersError, cache_shape_of
from engine.checkpoint.architecture import model_class_of
from engine.interface import ModelLoadError
from engine.quiet import quiet_libraries

# Positions that come from the mask, or from distances between tokens.
_PLACED_BY_MASK = frozenset({"bloom", "mpt"})
_PLACED_BY_DISTANCE = frozenset({"t5", "mt5", "umt5", "longt5"})
# Decoders that number their tokens by the width of the cache, in a module that
# engine/decode/positions.py wraps.
_PLACED_BY_COUNT = frozenset(
    {
        "bart",
        "bigbird_pegasus",
        "blenderbot",
        "blenderbot-small",
        "m2m_100",
        "marian",
        "mbart",
        "pegasus",
        "pegasus_x",
        "plbart",
    }
)
# Their experts take a limited number of tokens of the whole batch.
_SHARED_CAPACITY = frozenset({"switch_transformers", "nllb-moe"})
# A prompt of the probe; some convolutions want more than one token.
_PROBE_TOKENS = 2


def require_supported(config: Any) -> None:
    """Refuse an architecture that cannot run here.

    Args:
        config: The transformers configuration of the model of text.

    Raises:
        ModelLoadError: It cannot; the message says why.
    """
    try:
        _check(config)
    except UnsupportedLayersError as error:
        raise ModelLoadError(
            f"{config.model_type} models are not supported: {error}; docs/models.md lists the "
            "families that run"
        ) from error


def row_state_bytes(config: Any, dtype: torch.dtype) -> int:
    """Bytes of one row's recurrent states in all layers; 0 for a model without any.

    Args:
        config: The transformers configuration.
        dtype: What is not int8 is computed in.
    """
    if not cache_shape_of(config).has_states:
        return 0
    elements, float32_elements = _state_elements(_Described(config.to_json_string(), config))
    return elements * dtype.itemsize + float32_elements * torch.float32.itemsize


def _check(config: Any) -> None:
    takes = inspect.signature(model_class_of(config).forward).parameters
    if not takes.keys() & {"past_key_values", "cache_params"}:
        raise UnsupportedLayersError(
            "transformers' layers of it cache nothing that a decode step could go on from, or "
            "hand states on in a form of their own"
        )
    if config.model_type in _SHARED_CAPACITY:
        raise UnsupportedLayersError(
            "its experts take a limited number of tokens of the whole batch, so that a prompt's "
            "completion would depend on the prompts beside it"
        )
    shape = cache_shape_of(config)
    if shape.has_states:
        row_state_bytes(config, torch.float32)
    if not _can_place(config, takes.keys(), shape):
        raise UnsupportedLayersError(
            "transformers does not let a caller say each row's positions, which rows of one "
            "batch need"
        )


def _can_place(config: Any, takes: Any, shape: CacheShape) -> bool:
    if config.is_encoder_decoder:
        by_type = _PLACED_BY_DISTANCE | _PLACED_BY_COUNT
        return "decoder_position_ids" in takes or config.model_type in by_type
    by_type = _PLACED_BY_MASK | _PLACED_BY_COUNT
    return "position_ids" in takes or not shape.has_columns or config.model_type in by_type


@dataclass(frozen=True)
class _Described:
    """A configuration that is the same as another of the same text."""

    text: str
    config: Any = field(compare=False)


@cache
def _state_elements(described: _Described) -> tuple[int, int]:
    """Elements of a row's states in the model's dtype, and in float32, from a pass on meta."""
    try:
        layers = _probed_layers(described.config)
    except Exception as error:  # whatever a model's code raises when it is given this cache
        first_line = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UnsupportedLayersError(
            f"transformers keeps its states in a form of its own ({first_line})"
        ) from error
    counts = {torch.bfloat16: 0, torch.float32: 0}
    for layer in layers:
        states = [
            each
            for name in STATE_NAMES
            for each in getattr(layer, name, {}).values()
            if each is not None
        ]
        if hasattr(layer, STATE_NAMES[0]) and not states:
            raise UnsupportedLayersError("transformers keeps its states outside of the cache")
        for each in states:
            counts[each.dtype] += each.numel()
    return counts[torch.bfloat16], counts[torch.float32]


def _probed_layers(config: Any) -> list[Any]:
    """The cache's layers after a pass of one prompt, without memory."""
    model_class = model_class_of(config)
    takes = inspect.signature(model_class.forward).parameters
    name = "past_key_values" if "past_key_values" in takes else "cache_params"
    # bfloat16 tells the model's own dtype from float32.
    with quiet_libraries(), torch.device("meta"), torch.inference_mode():
        model = model_class._from_config(deepcopy(config), dtype=torch.bfloat16).eval()
        cached = DynamicCache(config=config)
        model(
            input_ids=torch.zeros((1, _PROBE_TOKENS), dtype=torch.long),
            use_cache=True,
            **{name: cached},
        )
    layers: list[Any] = cached.layers
    return layers
