"""Checkpoints of all four families, small enough to load in a blink.

The trained ones of examples/checkpoints where they are there, else random
weights with a tokenizer trained on a few lines.
"""

from __future__ import annotations

from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    BloomConfig,
    BloomForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    PreTrainedTokenizerFast,
    T5Config,
    T5ForConditionalGeneration,
)

# Matrices this small are done sooner by one thread than by waiting for a second.
torch.set_num_threads(1)

TRAINED = Path(__file__).parents[1] / "examples" / "checkpoints"
ALIASES = ("tiny-bloom", "tiny-gpt-neox", "tiny-cerebras", "tiny-flan")
ENCODER_DECODERS = ("tiny-flan",)
END, PAD = 0, 1
_VOCABULARY = 300
_WIDTH = 32

_TEXT = (
    "the queue holds shards and the worker takes one shard at a time",
    "every prompt is written to the database before a message is sent",
    "a model that fits the card runs, and a prompt is never lost",
)


@dataclass(frozen=True, kw_only=True)
class TinyArchitecture:
    model_class: Any
    config: Any
    # Cerebras' tokenizer has no padding token.
    has_padding_token: bool = True


_ARCHITECTURES = {
    "tiny-bloom": TinyArchitecture(
        model_class=BloomForCausalLM,
        config=BloomConfig(
            vocab_size=_VOCABULARY,
            hidden_size=_WIDTH,
            n_layer=2,
            n_head=4,
            bos_token_id=END,
            eos_token_id=END,
            pad_token_id=PAD,
        ),
    ),
    "tiny-gpt-neox": TinyArchitecture(
        model_class=GPTNeoXForCausalLM,
        config=GPTNeoXConfig(
            vocab_size=_VOCABULARY,
            hidden_size=_WIDTH,
            num_hidden_layers=2,
            num_attention_heads=4,
            intermediate_size=64,
            max_position_embeddings=128,
            bos_token_id=END,
            eos_token_id=END,
        ),
    ),
    "tiny-cerebras": TinyArchitecture(
        model_class=GPT2LMHeadModel,
        config=GPT2Config(
            vocab_size=_VOCABULARY,
            n_embd=_WIDTH,
            n_layer=2,
            n_head=4,
            n_positions=128,
            bos_token_id=END,
            eos_token_id=END,
        ),
        has_padding_token=False,
    ),
    "tiny-flan": TinyArchitecture(
        model_class=T5ForConditionalGeneration,
        config=T5Config(
            vocab_size=_VOCABULARY,
            d_model=_WIDTH,
            d_kv=8,
            d_ff=64,
            num_layers=2,
            num_heads=4,
            feed_forward_proj="gated-gelu",
            tie_word_embeddings=False,
            decoder_start_token_id=PAD,
            eos_token_id=END,
            pad_token_id=PAD,
        ),
    ),
}


def tiny_tokenizer(*, has_padding_token: bool = True) -> Any:
    """A byte-level tokenizer whose end token is END and padding token PAD."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=_VOCABULARY,
        special_tokens=["</s>", "<pad>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_TEXT, trainer)
    padding = {"pad_token": "<pad>"} if has_padding_token else {}
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="</s>", eos_token="</s>", **padding
    )


def tiny_model(alias: str) -> Any:
    """A random float32 model whose weights are large enough to say varied things."""
    architecture = _ARCHITECTURES[alias]
    torch.manual_seed(7)
    # A copy: what a test changes in it must not reach the next one.
    model = architecture.model_class(deepcopy(architecture.config))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(4.0)
    return model.eval()


def save_random_checkpoint(alias: str, folder: Path) -> Path:
    """Write a random checkpoint of this family with its tokenizer."""
    tiny_model(alias).save_pretrained(folder)
    tiny_tokenizer(has_padding_token=_ARCHITECTURES[alias].has_padding_token).save_pretrained(
        folder
    )
    return folder


def checkpoint_folder(alias: str, scratch: Path) -> Path:
    """The trained checkpoint if it is there, else a random one under scratch."""
    trained = TRAINED / alias
    if (trained / "config.json").is_file():
        return trained
    folder = scratch / alias
    return folder if folder.is_dir() else save_random_checkpoint(alias, folder)
