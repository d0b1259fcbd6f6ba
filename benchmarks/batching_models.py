"""The models and requests of benchmarks.batching: random weights, completions of forced length."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    BloomConfig,
    GPT2Config,
    GPTNeoXConfig,
    T5Config,
)

from benchmarks.streamed_maker import streamed_maker
from engine.interface import GenerationRequest, ModelDescription, SamplingParameters
from engine.model.loaded import Int8Model
from tests.tiny_checkpoints import END, PAD, tiny_tokenizer

VOCABULARY = 300
CONTEXT_TOKENS = 1024
FAMILIES = ("gpt-neox", "bloom", "cerebras", "flan")
# Makes a model with nothing else running; one that streams its weights will do.
Maker = Callable[[], Int8Model]


def maker_of(family: str, arguments: argparse.Namespace, folder: Path) -> Maker:
    """Makes the same random model again and again, resident in float or streamed as int8."""
    device = torch.device(arguments.device)

    def make() -> Int8Model:
        torch.manual_seed(0)
        config = config_of(family, arguments.hidden, arguments.layers)
        kind = AutoModelForSeq2SeqLM if config.is_encoder_decoder else AutoModelForCausalLM
        dtype = torch.float16 if device.type == "cuda" else torch.float32
        model = kind.from_config(config, dtype=dtype).to(device).eval()
        return Int8Model(model=model, tokenizer=tiny_tokenizer(), device=device)

    return streamed_maker(make().model, folder, device) if arguments.streamed else make


def config_of(family: str, hidden: int, layers: int) -> Any:
    ends = {"vocab_size": VOCABULARY, "bos_token_id": END, "eos_token_id": END}
    heads = max(1, hidden // 64)
    if family == "bloom":
        return BloomConfig(hidden_size=hidden, n_layer=layers, n_head=heads, **ends)
    if family == "cerebras":
        return GPT2Config(n_embd=hidden, n_layer=layers, n_head=heads, **ends)
    if family == "flan":
        sizes = {"d_model": hidden, "d_kv": 64, "d_ff": 4 * hidden, "num_heads": heads}
        return T5Config(
            num_layers=layers, pad_token_id=PAD, decoder_start_token_id=PAD, **sizes, **ends
        )
    return GPTNeoXConfig(
        hidden_size=hidden,
        intermediate_size=4 * hidden,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        **ends,
    )


def forced_request(key: int, prompt_tokens: int, new_tokens: int) -> GenerationRequest:
    # The tokenizer knows no pair of these letters, so each is a token.
    prompt = "".join("#%"[place % 2] for place in range(prompt_tokens))
    parameters = SamplingParameters(max_new_tokens=new_tokens, eos_token_ids=())
    return GenerationRequest(key=key, prompt=prompt, parameters=parameters)


def description(model: Int8Model) -> ModelDescription:
    return ModelDescription(
        alias="random",
        device=str(model.device),
        architecture=type(model.model).__name__,
        parameter_count=0,
        weight_bytes=0,
        load_seconds=0.0,
        context_tokens=CONTEXT_TOKENS,
        compute_mode="w8a16",
    )
