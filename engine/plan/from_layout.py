"""From a model's layout and configuration to what the planner asks about it."""

from __future__ import annotations

from math import prod
from typing import Any

import torch

from engine.cache.format import CacheDtype, CacheFormat, cache_format
from engine.cache.shape import CacheShape, cache_shape_of
from engine.checkpoint.architecture import model_class_of
from engine.int8.linear import GPU_SCRATCH_BYTES
from engine.int8.product import CPU_SCRATCH_BYTES
from engine.layout.blocks import BlockLayout, ModelLayout, layout_of
from engine.layout.support import row_state_bytes
from engine.plan.demands import PREFILL_TOKENS, BlockDemand, ModelDemands, Phase

# What is not int8, in the store and in memory: float16 on a GPU, float32 on a CPU.
DTYPES = {True: torch.float16, False: torch.float32}


# The sums, int32. On a CPU activations as int8 too, not beside them but before them.
PRODUCT_BYTES = {True: 4, False: 4 + 1}


# torch takes a CPU's activations from the C heap, and glibc keeps what is freed
# between what is in use. See docs/adr/0008 for what was tried against it.
HEAP_FACTORS = {True: 1.0, False: 2.5}


# Of the 16384 x 4096 matrices of bloom-7b1, two cores multiply as many tokens a
# second in 64s as in 1024s. Not fewer at once, for a long prompt is read in
# parts of so many, one in each step.
CPU_PREFILL_TOKENS = 256


def demands_of_config(
    config: Any,
    name: str,
    *,
    on_gpu: bool,
    kv_cache: CacheDtype = "float",
    is_whole: bool = False,
) -> ModelDemands:
    """What a model of this configuration asks for; no weights are read.

    Args:
        config: A transformers configuration.
        name: Name of the model, for messages.
        on_gpu: Whether a GPU computes.
        kv_cache: How keys and values are kept.
        is_whole: Whether the model is known to be loaded whole by transformers.
    """
    layout = layout_of(config, dtype=DTYPES[on_gpu], is_whole=is_whole)
    return demands_of_layout(config, name, layout, on_gpu=on_gpu, kv_cache=kv_cache)


def demands_of_layout(
    config: Any,
    name: str,
    layout: ModelLayout,
    *,
    on_gpu: bool,
    kv_cache: CacheDtype = "float",
    store_bytes: int | None = None,
) -> ModelDemands:
    """What a model of a known layout asks for, such as that of a store of so many bytes."""
    dtype = DTYPES[on_gpu]
    if layout.is_whole:
        more_bytes = 0
    elif store_bytes is None:
        more_bytes = _plain_copies_bytes(config, layout, dtype)
    else:
        more_bytes = max(0, store_bytes - layout.int8_bytes)
    int8 = [tensor.shape for tensor in layout.tensors if tensor.quantised]
    shape = cache_shape_of(config)
    return ModelDemands(
        name=name,
        blocks=_blocks(config, layout, shape, cache_format(kv_cache), dtype),
        hidden_size=config.hidden_size,
        widest_size=max((max(each) for each in int8), default=config.hidden_size),
        heads=getattr(config, "num_attention_heads", None) or 1,
        vocabulary_size=config.vocab_size,
        scratch_bytes=min(
            max((prod(each) for each in int8), default=0) * dtype.itemsize,
            GPU_SCRATCH_BYTES if on_gpu else CPU_SCRATCH_BYTES,
        ),
        product_bytes=PRODUCT_BYTES[on_gpu],
        prefill_tokens=PREFILL_TOKENS if on_gpu else CPU_PREFILL_TOKENS,
        float_bytes=dtype.itemsize,
        heap_factor=HEAP_FACTORS[on_gpu],
        more_store_bytes=more_bytes,
        is_whole=layout.is_whole,
        state_bytes_per_row=row_state_bytes(config, dtype),
        keeps_scores=not getattr(model_class_of(config), "_supports_sdpa", False),
    )


def _blocks(
    config: Any, layout: ModelLayout, shape: CacheShape, form: CacheFormat, dtype: torch.dtype
) -> tuple[BlockDemand, ...]:
    layers = iter(shape.layers)
    blocks = []
    for block in layout.blocks:
        layer = next(layers, None) if block.kind == "decoder" else None
        kv_bytes = 0 if layer is None else layer.token_bytes(form, dtype)
        blocks.append(_block(config, block, layout, kv_bytes))
    return tuple(blocks)


def _plain_copies_bytes(config: Any, layout: ModelLayout, dtype: torch.dtype) -> int:
    """Bytes of what the store holds a second time, as transformers keeps it."""
    plain = layout_of(config, dtype=dtype, as_transformers=True)
    return sum(tensor.bytes for tensor in set(plain.tensors) - set(layout.tensors))


def _block(config: Any, block: BlockLayout, layout: ModelLayout, kv_bytes: int) -> BlockDemand:
    causal = not config.is_encoder_decoder
    shared = block.kind == "rest" or (
        block.kind == "embedding" and not (causal and block.is_lookup)
    )
    phase: Phase = "encode" if block.kind == "encoder" else "decode"
    return BlockDemand(
        name=block.name,
        phase="both" if shared and not causal else phase,
        is_layer=block.kind in ("encoder", "decoder"),
        weight_bytes=block.bytes,
        stays_resident=shared or layout.is_whole,
        matrix_parameters=_matrix_parameters(config, block, layout),
        self_kv_bytes_per_token=kv_bytes,
        cross_kv_bytes_per_token=0 if causal else kv_bytes,
    )


def _matrix_parameters(config: Any, block: BlockLayout, layout: ModelLayout) -> int:
    if block.kind == "embedding":
        is_head = all(each.kind != "head" for each in layout.blocks)
        return config.vocab_size * config.hidden_size if is_head else 0
    return sum(prod(t.shape) for t in block.tensors if t.is_parameter and len(t.shape) > 1)
