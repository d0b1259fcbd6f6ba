"""From a model's layout and configuration to what the planner asks about it."""

from __future__ import annotations

from math import prod
from typing import Any

import torch
from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING

from worker.engine.model_demands import BlockDemand, ModelDemands, Phase
from worker.engine.model_layout import BlockLayout, ModelLayout, layout_of

# What is not int8 on disk.
STORED_DTYPE = torch.float16


def demands_of_config(config: Any, name: str, *, on_gpu: bool) -> ModelDemands:
    """What a model of this configuration asks for; no weights are read.

    Args:
        config: A transformers configuration.
        name: For messages.
        on_gpu: Where it computes. A CPU keeps what is not int8 in float32.
    """
    stored = layout_of(config, dtype=STORED_DTYPE)
    if on_gpu:
        return _demands(config, name, stored, stored, STORED_DTYPE.itemsize)
    loaded = layout_of(config, dtype=torch.float32)
    return _demands(config, name, stored, loaded, torch.float32.itemsize)


def _demands(
    config: Any, name: str, stored: ModelLayout, loaded: ModelLayout, float_bytes: int
) -> ModelDemands:
    blocks = tuple(
        _block(config, on_disk, in_memory, stored, float_bytes)
        for on_disk, in_memory in zip(stored.blocks, loaded.blocks, strict=True)
    )
    int8 = [tensor.shape for tensor in stored.tensors if tensor.quantised]
    return ModelDemands(
        name=name,
        blocks=blocks,
        hidden_size=config.hidden_size,
        widest_size=max(max(shape) for shape in int8),
        heads=config.num_attention_heads,
        vocabulary_size=config.vocab_size,
        largest_matrix_parameters=max(prod(shape) for shape in int8),
        float_bytes=float_bytes,
        keeps_scores=not _supports_sdpa(config),
    )


def _block(
    config: Any,
    on_disk: BlockLayout,
    in_memory: BlockLayout,
    layout: ModelLayout,
    float_bytes: int,
) -> BlockDemand:
    causal = not config.is_encoder_decoder
    shared = on_disk.kind == "rest" or (on_disk.kind == "embedding" and not causal)
    phase: Phase = "encode" if on_disk.kind == "encoder" else "decode"
    kv = _kv_bytes_per_token(config, float_bytes) if on_disk.kind == "decoder" else 0
    return BlockDemand(
        name=on_disk.name,
        phase="both" if shared and not causal else phase,
        is_layer=on_disk.kind in ("encoder", "decoder"),
        stored_bytes=on_disk.bytes,
        loaded_bytes=in_memory.bytes,
        stays_resident=shared,
        matrix_parameters=_matrix_parameters(config, on_disk, layout),
        self_kv_bytes_per_token=kv,
        cross_kv_bytes_per_token=0 if causal else kv,
    )


def _matrix_parameters(config: Any, block: BlockLayout, layout: ModelLayout) -> int:
    if block.kind == "embedding":
        is_head = all(each.kind != "head" for each in layout.blocks)
        return config.vocab_size * config.hidden_size if is_head else 0
    return sum(prod(t.shape) for t in block.tensors if t.is_parameter and len(t.shape) > 1)


def _kv_bytes_per_token(config: Any, float_bytes: int) -> int:
    """A layer's keys and values for one token."""
    heads = config.num_attention_heads
    kv_heads = getattr(config, "num_key_value_heads", None) or heads
    head_size = getattr(config, "head_dim", None) or getattr(config, "d_kv", None)
    return int(2 * kv_heads * (head_size or config.hidden_size // heads) * float_bytes)


def _supports_sdpa(config: Any) -> bool:
    """Whether transformers computes attention without writing its scores to memory."""
    mapping = (
        MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING
        if config.is_encoder_decoder
        else MODEL_FOR_CAUSAL_LM_MAPPING
    )
    return bool(getattr(mapping[type(config)], "_supports_sdpa", False))
