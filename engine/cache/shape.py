"""What each layer of a model caches for a row, from its configuration alone."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from transformers import DynamicCache, cache_utils
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

from engine.cache.format import CacheFormat

# "attention": keys and values of every token. "states": tensors of one size,
# which each token changes. "both": a layer with either. "none": nothing, or the
# keys and values of another layer.
LayerKind = Literal["attention", "states", "both", "none"]


class UnsupportedLayersError(Exception):
    """Layers that cache something else than keys, values and states; the message names it."""


@dataclass(frozen=True, kw_only=True)
class LayerShape:
    """One layer's part of a cache.

    Attributes:
        kind: What it caches.
        heads: Heads of keys and of values.
        key_size: Numbers in a head of keys.
        value_size: Numbers in a head of values.
        is_windowed: Whether it attends to a window of tokens only.
        state_count: States of either name that the layer has.
    """

    kind: LayerKind = "attention"
    heads: int = 0
    key_size: int = 0
    value_size: int = 0
    is_windowed: bool = False
    state_count: int = 1

    @property
    def has_states(self) -> bool:
        return self.kind in ("states", "both")

    def token_bytes(self, form: CacheFormat, dtype: torch.dtype) -> int:
        """Bytes of one token's keys and values."""
        if self.kind in ("states", "none"):
            return 0
        sizes = (self.key_size, self.value_size)
        return self.heads * sum(form.bytes_per_head(size, dtype) for size in sizes)


@dataclass(frozen=True, kw_only=True)
class CacheShape:
    """A model's cache, self and cross alike.

    Attributes:
        layers: Each layer's shape, in the order of execution.
    """

    layers: tuple[LayerShape, ...]

    @property
    def has_states(self) -> bool:
        return any(layer.has_states for layer in self.layers)

    @property
    def has_columns(self) -> bool:
        """Whether some layer keeps something of every token."""
        return any(layer.kind in ("attention", "both") for layer in self.layers)

    @property
    def is_uniform(self) -> bool:
        """Whether every layer attends to all tokens, so that one mask serves all."""
        return all(layer.kind == "attention" and not layer.is_windowed for layer in self.layers)

    def token_bytes(self, form: CacheFormat, dtype: torch.dtype) -> int:
        """Bytes of one token in all layers, keys and values together."""
        return sum(layer.token_bytes(form, dtype) for layer in self.layers)


def cache_shape_of(config: Any) -> CacheShape:
    """The shape of a decoder's cache.

    Args:
        config: A transformers configuration.

    Raises:
        UnsupportedLayersError: A layer caches something that rows cannot share a
            batch with.
    """
    decoder = config.get_text_config(decoder=True)
    count = getattr(decoder, "num_decoder_layers", None) or decoder.num_hidden_layers
    kinds = _kinds(decoder, count)
    return CacheShape(
        layers=tuple(
            _layer(_of_layer(decoder, index), kind, is_windowed=is_windowed, index=index)
            for index, (kind, is_windowed) in enumerate(kinds)
        )
    )


def _kinds(decoder: Any, count: int) -> Sequence[tuple[LayerKind, bool]]:
    """Each layer's kind, and whether it attends to a window, as transformers' cache has it."""
    if getattr(decoder, "is_encoder_decoder", False):
        return [("attention", False)] * count
    try:
        layers = DynamicCache(config=decoder).layers
    except (KeyError, ValueError, AttributeError, TypeError) as error:
        raise UnsupportedLayersError(f"transformers has no plain cache for it ({error})") from error
    if not layers:
        return [("attention", False)] * count
    return [(_kind(layer), isinstance(layer, DynamicSlidingWindowLayer)) for layer in layers]


def _kind(layer: object) -> LayerKind:
    names = {each.__name__ for each in type(layer).__mro__}
    has_states = "LinearAttentionCacheLayerMixin" in names
    if has_states and not hasattr(cache_utils, "LinearAttentionAndFullAttentionLayer"):
        raise UnsupportedLayersError("the installed transformers keeps its states in another way")
    if type(layer) in (DynamicLayer, DynamicSlidingWindowLayer):
        return "attention"
    if type(layer).__name__ == "DummyLayer":
        return "none"
    if type(layer).__name__ == "LinearAttentionLayer":
        return "states"
    if has_states:
        return "both"
    raise UnsupportedLayersError(f"its layers cache what {type(layer).__name__} does")


def _of_layer(decoder: Any, index: int) -> Any:
    """The configuration of one layer, where layers differ."""
    layers = getattr(decoder, "per_layer_config", None)
    try:
        return decoder if layers is None else layers[index]
    except (IndexError, KeyError, TypeError):
        return decoder


def _layer(config: Any, kind: LayerKind, *, is_windowed: bool, index: int) -> LayerShape:
    state_count = getattr(config, "number_of_conv_states", 1)
    if kind in ("states", "none"):
        return LayerShape(kind=kind, state_count=state_count)
    heads = _first(config, "num_attention_heads", "n_head", "decoder_attention_heads", "num_heads")
    if heads is None:
        raise UnsupportedLayersError("its configuration states no number of attention heads")
    kv_heads = _first(config, "num_key_value_heads", "n_head_kv", "num_kv_heads") or heads
    if isinstance(kv_heads, list | tuple):
        kv_heads = kv_heads[index]
    if getattr(config, "multi_query", False) and not getattr(
        config, "new_decoder_architecture", False
    ):
        kv_heads = 1
    size = _first(config, "head_dim", "d_kv", "kv_channels", "attention_head_dim")
    size = size or config.hidden_size // heads
    kv_heads, key_size, value_size = _special(config, is_windowed)(kv_heads, size)
    return LayerShape(
        kind=kind,
        heads=kv_heads,
        key_size=key_size,
        value_size=value_size,
        is_windowed=is_windowed,
        state_count=state_count,
    )


def _special(config: Any, is_windowed: bool) -> Callable[[int, int], tuple[int, int, int]]:
    """What turns heads and head size into what the layer caches."""
    if getattr(config, "kv_lora_rank", None) and getattr(config, "qk_rope_head_dim", None):
        # Multi-head latent attention, as transformers caches it: after the projection.
        key_size = config.qk_nope_head_dim + config.qk_rope_head_dim
        return lambda _heads, _size: (config.num_attention_heads, key_size, config.v_head_dim)
    if not is_windowed and getattr(config, "global_head_dim", None):
        heads = getattr(config, "num_global_key_value_heads", None)
        return lambda kv, _size: (heads or kv, config.global_head_dim, config.global_head_dim)
    return lambda kv, size: (kv, size, size)


def _first(config: Any, *names: str) -> Any:
    """The first of these attributes that is set."""
    return next(
        (value for name in names if (value := getattr(config, name, None)) is not None), None
    )
