"""Plain transformers on a store: what the engine is held to."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSeq2SeqLM, AutoTokenizer

from engine.quiet import quiet_libraries
from engine.store.prepare import Int8Store
from tests.stores import CPU, engine_only_tensors


def plain_model(
    store: Int8Store,
    *,
    mode: str,
    device: torch.device = CPU,
    dtype: torch.dtype = torch.float32,
) -> Any:
    """The store as transformers loads it, whole, by default in float32 on the CPU.

    Its `wo` of a T5 are float copies that nothing rounded to int8; the store's
    int8 ones take their place, made float. For "w8a16" so does every linear.
    """
    with quiet_libraries():
        is_encoder_decoder = AutoConfig.from_pretrained(store.folder).is_encoder_decoder
        kind = AutoModelForSeq2SeqLM if is_encoder_decoder else AutoModelForCausalLM
        model = kind.from_pretrained(store.folder, device_map={"": device}, dtype=dtype)
        from bitsandbytes.nn import Linear8bitLt
    rounded = engine_only_tensors(store.folder)
    for name, module in list(model.named_modules()):
        if f"{name}.SCB" in rounded:
            floats = _floats(rounded[f"{name}.weight"], rounded[f"{name}.SCB"])
            module.weight.data = floats.to(device)
        elif mode == "w8a16" and isinstance(module, Linear8bitLt):
            scales: Any = module.weight.SCB
            model.set_submodule(
                name, _linear(_floats(module.weight.data, scales).to(dtype), module.bias)
            )
    return model.eval()


def _floats(weight: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
    return weight.float() * (scales.float()[:, None] / 127)


def _linear(weight: torch.Tensor, bias: Any) -> torch.nn.Linear:
    out_features, in_features = weight.shape
    linear = torch.nn.Linear(in_features, out_features, bias=bias is not None)
    linear.weight = torch.nn.Parameter(weight, requires_grad=False)
    linear.bias = bias
    return linear


def greedy(model: Any, store: Int8Store, prompts: Sequence[str], *, new_tokens: int) -> list[Any]:
    """The new tokens of each prompt, all of them in one batch."""
    is_encoder_decoder = model.config.is_encoder_decoder
    tokenizer = AutoTokenizer.from_pretrained(
        store.folder, padding_side="right" if is_encoder_decoder else "left"
    )
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    batch = tokenizer(list(prompts), return_tensors="pt", padding=True)
    with quiet_libraries(), torch.inference_mode():
        rows = model.generate(
            input_ids=batch["input_ids"].to(model.device),
            attention_mask=batch["attention_mask"].to(model.device),
            max_new_tokens=new_tokens,
            min_new_tokens=new_tokens,
            do_sample=False,
            pad_token_id=tokenizer.pad_token_id,
        )
    return [row[-new_tokens:].tolist() for row in rows]
