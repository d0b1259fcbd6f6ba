"""From a model's layout and configuration to what the planner asks about it."""

from __future__ import annotations

from math import prod
from typing import Any

import torch
from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING

from engine.cache.format import CacheDtype, cache_format
from engine.cache.memory import cache_shape_of
from engine.int8.linear import GPU_SCRATCH_BYTES
from engine.int8.product import CPU_SCRATCH_BYTES
from engine.layout.blocks import BlockLayout, ModelLayout, layout_of
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
    config: Any, name: str, *, on_gpu: bool, kv_cache: CacheDtype = "float"
) -> ModelDemands:
    """What a model of this configuration asks for; no weights are read.

    Args:
        config: A transformers configuration.
        name: For messages.
        on_gpu: Whether a GPU computes.
        kv_cache: How keys and values are kept.
    """
    layout = layout_of(config, dtype=DTYPES[on_gpu])
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
    """The same for a layout that is known, such as that of a store of so many bytes."""
    dtype = DTYPES[on_gpu]
    more_bytes = (
        _plain_copies_bytes(config, layout, dtype)
        if store_bytes is None
        else max(0, store_bytes - layout.int8_bytes)
    )
    int8 = [tensor.shape for tensor in layout.tensors if tensor.quantised]
    return ModelDemands(
        name=name,
        blocks=tuple(
            _block(config, each, layout, _layer_kv_bytes(config, dtype, kv_cache))
            for each in layout.blocks
        ),
        hidden_size=config.hidden_size,
        widest_size=max((max(shape) for shape in int8), default=config.hidden_size),
        heads=config.num_attention_heads,
        vocabulary_size=config.vocab_size,
        scratch_bytes=min(
            max((prod(shape) for shape in int8), default=0) * dtype.itemsize,
            GPU_SCRATCH_BYTES if on_gpu else CPU_SCRATCH_BYTES,
        ),
        product_bytes=PRODUCT_BYTES[on_gpu],
        prefill_tokens=PREFILL_TOKENS if on_gpu else CPU_PREFILL_TOKENS,
        float_bytes=dtype.itemsize,
        heap_factor=HEAP_FACTORS[on_gpu],
        more_store_bytes=more_bytes,
        keeps_scores=not _supports_sdpa(config),
    )


def _plain_copies_bytes(config: Any, layout: ModelLayout, dtype: torch.dtype) -> int:
    """Of what the store holds a second time, as transformers keeps it."""
    plain = layout_of(config, dtype=dtype, as_transformers=True)
    return sum(tensor.bytes for tensor in set(plain.tensors) - set(layout.tensors))


def _block(
    config: Any, block: BlockLayout, layout: ModelLayout, layer_kv_bytes: int
) -> BlockDemand:
    causal = not config.is_encoder_decoder
    shared = block.kind == "rest" or (
        block.kind == "embedding" and not (causal and block.is_lookup)
    )
    phase: Phase = "encode" if block.kind == "encoder" else "decode"
    kv = layer_kv_bytes if block.kind == "decoder" else 0
    return BlockDemand(
        name=block.name,
        phase="both" if shared and not causal else phase,
        is_layer=block.kind in ("encoder", "decoder"),
        weight_bytes=block.bytes,
        stays_resident=shared,
        matrix_parameters=_matrix_parameters(config, block, layout),
        self_kv_bytes_per_token=kv,
        cross_kv_bytes_per_token=0 if causal else kv,
    )


def _matrix_parameters(config: Any, block: BlockLayout, layout: ModelLayout) -> int:
    if block.kind == "embedding":
        is_head = all(each.kind != "head" for each in layout.blocks)
        return config.vocab_size * config.hidden_size if is_head else 0
    return sum(prod(t.shape) for t in block.tensors if t.is_parameter and len(t.shape) > 1)


def _layer_kv_bytes(config: Any, dtype: torch.dtype, kv_cache: CacheDtype) -> int:
    """A layer's keys and values for one token."""
    shape = cache_shape_of(config)
    return shape.token_bytes(cache_format(kv_cache), dtype) // shape.layers


def _supports_sdpa(config: Any) -> bool:
    """Whether transformers computes attention without writing its scores to memory."""
    mapping = (
        MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING
        if config.is_encoder_decoder
        else MODEL_FOR_CAUSAL_LM_MAPPING
    )
    return bool(getattr(mapping[type(config)], "_supports_sdpa", False))
