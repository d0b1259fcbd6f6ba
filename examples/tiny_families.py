"""The four tiny models: one per family, each with the tokenizer kind of its large relative."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from tokenizers import (
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)
from torch import nn
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

CONTEXT_TOKENS = 256
VOCABULARY_SIZE = 1024
HIDDEN_SIZE = 128
HEADS = 4
# The usual 0.02 is meant for models forty times as wide: with it these learn
# nothing for the first hundred steps.
INITIAL_SPREAD = 0.1

CHAT_TEMPLATE = (
    "{% for message in messages %}{{ message['role'] }}: {{ message['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant:{% endif %}"
)


@dataclass(frozen=True, kw_only=True)
class TinyFamily:
    """How one family's tiny model and tokenizer are made."""

    alias: str
    relative: str  # the large model it stands for
    trait: str  # what of that model the tests need it to have
    make_tokenizer: Callable[[Sequence[str]], Any]
    make_model: Callable[[int], Any]  # from the vocabulary size
    is_encoder_decoder: bool = False
    tokens_per_batch: int = 512
    passes: int = 30  # through the text, when there is time
    time_share: float = 1.0  # of the minutes asked for


def _bloom_tokenizer(paragraphs: Sequence[str]) -> Any:
    return _wrap(
        _byte_level_bpe(paragraphs, ["<unk>", "<s>", "</s>", "<pad>"]),
        {"unk": "<unk>", "bos": "<s>", "eos": "</s>", "pad": "<pad>"},
        padding_side="left",
        chat_template=CHAT_TEMPLATE,
    )


def _gpt_neox_tokenizer(paragraphs: Sequence[str]) -> Any:
    end, padding = "<|endoftext|>", "<|padding|>"
    return _wrap(
        _byte_level_bpe(paragraphs, [end, padding]),
        {"unk": end, "bos": end, "eos": end, "pad": padding},
    )


def _cerebras_tokenizer(paragraphs: Sequence[str]) -> Any:
    # No padding token, as in Cerebras-GPT: whoever makes batches must choose one.
    end = "<|endoftext|>"
    return _wrap(_byte_level_bpe(paragraphs, [end]), {"unk": end, "bos": end, "eos": end})


def _flan_tokenizer(paragraphs: Sequence[str]) -> Any:
    pad, end, unknown = "<pad>", "</s>", "<unk>"
    return _wrap(
        _unigram(paragraphs, pad=pad, end=end, unknown=unknown),
        {"unk": unknown, "eos": end, "pad": pad},
    )


def _wrap(tokenizer: Tokenizer, special_tokens: dict[str, str], **options: Any) -> Any:
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        model_max_length=CONTEXT_TOKENS,
        **{f"{role}_token": token for role, token in special_tokens.items()},
        **options,
    )


def _byte_level_bpe(paragraphs: Sequence[str], special_tokens: list[str]) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY_SIZE,
        special_tokens=special_tokens,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(paragraphs, trainer)
    return tokenizer


def _unigram(paragraphs: Sequence[str], *, pad: str, end: str, unknown: str) -> Tokenizer:
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.normalizer = normalizers.NFKC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace()]
    )
    tokenizer.decoder = decoders.Metaspace()
    trainer = trainers.UnigramTrainer(
        vocab_size=VOCABULARY_SIZE,
        special_tokens=[pad, end, unknown],
        unk_token=unknown,
        initial_alphabet=[chr(code) for code in range(0x21, 0x7F)],
        show_progress=False,
    )
    tokenizer.train_from_iterator(paragraphs, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"$A {end}", pair=f"$A {end} $B {end}", special_tokens=[(end, 1)]
    )
    return tokenizer


def _bloom_model(vocabulary_size: int) -> Any:
    return BloomForCausalLM(
        BloomConfig(
            vocab_size=vocabulary_size,
            hidden_size=HIDDEN_SIZE,
            n_layer=4,
            n_head=HEADS,
            seq_length=CONTEXT_TOKENS,
            initializer_range=INITIAL_SPREAD,
            bos_token_id=1,
            eos_token_id=2,
            pad_token_id=3,
        )
    )


def _gpt_neox_model(vocabulary_size: int) -> Any:
    return GPTNeoXForCausalLM(
        GPTNeoXConfig(
            vocab_size=vocabulary_size,
            hidden_size=HIDDEN_SIZE,
            num_hidden_layers=3,
            num_attention_heads=HEADS,
            intermediate_size=4 * HIDDEN_SIZE,
            max_position_embeddings=CONTEXT_TOKENS,
            rotary_pct=0.25,
            use_parallel_residual=True,
            tie_word_embeddings=False,
            initializer_range=INITIAL_SPREAD,
            bos_token_id=0,
            eos_token_id=0,
        )
    )


def _cerebras_model(vocabulary_size: int) -> Any:
    return GPT2LMHeadModel(
        GPT2Config(
            vocab_size=vocabulary_size,
            n_embd=HIDDEN_SIZE,
            n_layer=4,
            n_head=HEADS,
            n_inner=4 * HIDDEN_SIZE,
            n_positions=CONTEXT_TOKENS,
            activation_function="gelu",
            initializer_range=INITIAL_SPREAD,
            resid_pdrop=0.0,
            embd_pdrop=0.0,
            attn_pdrop=0.0,
            bos_token_id=0,
            eos_token_id=0,
        )
    )


def _flan_model(vocabulary_size: int) -> Any:
    model = T5ForConditionalGeneration(
        T5Config(
            vocab_size=vocabulary_size,
            d_model=HIDDEN_SIZE,
            d_kv=HIDDEN_SIZE // HEADS,
            d_ff=192,
            num_layers=2,
            num_decoder_layers=2,
            num_heads=HEADS,
            dropout_rate=0.0,
            feed_forward_proj="gated-silu",
            tie_word_embeddings=False,
            decoder_start_token_id=0,
        )
    )
    # transformers 5 ties the head whatever T5's configuration says; flan-ul2's
    # head is its own, so this one is cut loose before it learns anything.
    nn.init.normal_(model.shared.weight, std=INITIAL_SPREAD)
    model.lm_head.weight = nn.Parameter(
        nn.init.normal_(torch.empty_like(model.shared.weight), std=INITIAL_SPREAD)
    )
    return model


FAMILIES = (
    TinyFamily(
        alias="tiny-bloom",
        relative="bloom-7b1",
        trait="ALiBi, tied head, chat template",
        make_tokenizer=_bloom_tokenizer,
        make_model=_bloom_model,
    ),
    TinyFamily(
        alias="tiny-gpt-neox",
        relative="gpt-neox-20b",
        trait="rotary 25 %, parallel residual, untied head",
        make_tokenizer=_gpt_neox_tokenizer,
        make_model=_gpt_neox_model,
    ),
    TinyFamily(
        alias="tiny-cerebras",
        relative="Cerebras-GPT-13B",
        trait="Conv1D, learned positions, no padding token",
        make_tokenizer=_cerebras_tokenizer,
        make_model=_cerebras_model,
    ),
    TinyFamily(
        alias="tiny-flan",
        relative="flan-ul2",
        trait="encoder-decoder, gated-silu, relative bias, untied head",
        make_tokenizer=_flan_tokenizer,
        make_model=_flan_model,
        is_encoder_decoder=True,
        # Only what the decoder says is learned from: it needs more text per step.
        tokens_per_batch=1024,
        passes=80,
        time_share=1.75,
    ),
)
