"""Which engine a model gets: our own decode loop, or generate() for what that cannot take."""

from __future__ import annotations

import inspect
from typing import Any

from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

from engine.cache.format import CacheDtype
from engine.decode.engine import ContinuousEngine
from engine.decode.static_engine import TransformersEngine
from engine.interface import Engine, ModelDescription
from engine.model.loaded import Int8Model
from engine.plan.limits import BatchLimits

# Positions that come from the mask or from distances between columns; others
# have to be given to the model.
_PLACED_BY_MASK = frozenset({"bloom"})


_PLACED_BY_DISTANCE = frozenset({"t5", "mt5", "umt5"})


def make_engine(
    loaded: Int8Model,
    description: ModelDescription,
    *,
    limits: BatchLimits,
    cache_dtype: CacheDtype = "float",
) -> Engine:
    """An engine over a loaded model, with continuous batching where that can be.

    Raises:
        ValueError: The limits leave no row.
    """
    if supports_continuous(loaded.model):
        return ContinuousEngine(loaded, description, limits=limits, cache_dtype=cache_dtype)
    return TransformersEngine(loaded, description, micro_batch_rows=limits.rows)


def supports_continuous(model: Any) -> bool:
    """Whether rows may join and leave a running batch of this model.

    Its layers must cache keys and values of every token and nothing else (no
    sliding windows, no recurrent states), and it must be possible to tell it
    each row's positions.
    """
    config = model.config
    layers = DynamicCache(config=config).layers
    if any(type(layer) is not DynamicLayer for layer in layers):
        return False
    if not getattr(model, "_supports_default_dynamic_cache", lambda: True)():
        return False
    if config.is_encoder_decoder:
        return config.model_type in _PLACED_BY_DISTANCE
    takes = inspect.signature(model.forward).parameters
    return "position_ids" in takes or config.model_type in _PLACED_BY_MASK
