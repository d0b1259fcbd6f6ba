"""Checkpoints of random weights of any size, written without holding one in memory."""

from __future__ import annotations

from math import prod
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM

from engine.layout.blocks import TensorLayout
from engine.store.header import safetensors_header
from tests.tiny_checkpoints import tiny_tokenizer

# A prime, so that no two rows of a weight are alike though it repeats.
_ELEMENTS = 4_194_301


def write_random_checkpoint(config: Any, folder: Path) -> int:
    """Write a float16 checkpoint of a causal model; return the bytes of its tensors."""
    folder.mkdir(parents=True)
    with torch.device("meta"):
        state = AutoModelForCausalLM.from_config(config).state_dict()
    if config.tie_word_embeddings:
        del state["lm_head.weight"]
    layouts = tuple(
        TensorLayout(
            name=name,
            model_name=name,
            dtype=torch.float16,
            shape=tuple(tensor.shape),
            role="plain",
            is_parameter=True,
        )
        for name, tensor in state.items()
    )
    generator = torch.Generator().manual_seed(7)
    values = torch.randn(_ELEMENTS, generator=generator).mul(0.02).half().numpy()
    with (folder / "model.safetensors").open("wb") as file:
        file.write(safetensors_header(layouts))
        for layout in layouts:
            left = prod(layout.shape)
            while left:
                file.write(values[:left].data)
                left -= min(left, _ELEMENTS)
    config.dtype = torch.float16
    config.save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return sum(layout.bytes for layout in layouts)
