"""Every family's context limit comes from where that family states it."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from engine.layout.families import family_of

NO_LIMIT = 1e30


def config(model_type: str, **values: Any) -> Any:
    return SimpleNamespace(model_type=model_type, **values)


@pytest.mark.parametrize(
    ("config", "tokenizer_limit", "expected"),
    [
        (config("gpt2", n_positions=2048), NO_LIMIT, 2048),
        # Cerebras-GPT: 2048 positions, and a GPT-2 tokenizer that says 1024
        (config("gpt2", n_positions=2048), 1024, 2048),
        (config("gpt_neox", max_position_embeddings=2048), NO_LIMIT, 2048),
        (config("bloom"), NO_LIMIT, 2048),
        (config("bloom", seq_length=4096), NO_LIMIT, 4096),
        # T5's positions are relative: neither its config nor its tokenizer limits it
        (config("t5", n_positions=512, is_encoder_decoder=True), 512, None),
        (config("llama", max_position_embeddings=4096), NO_LIMIT, 4096),
        (config("mpt"), 8192, 8192),
        (config("mpt"), NO_LIMIT, None),
        (config("bart", max_position_embeddings=1024, is_encoder_decoder=True), NO_LIMIT, 1024),
    ],
)
def test_context_limit(config: Any, tokenizer_limit: float, expected: int | None) -> None:
    limit = family_of(config).context_tokens(
        config, tokenizer_limit=tokenizer_limit, catalogue_limit=None
    )
    assert limit == expected


def test_the_catalogue_may_lower_a_limit_but_not_raise_it() -> None:
    gpt2 = config("gpt2", n_positions=2048)
    t5 = config("t5", is_encoder_decoder=True)
    for limit, expected in ((512, 512), (9999, 2048)):
        assert (
            family_of(gpt2).context_tokens(gpt2, tokenizer_limit=1e30, catalogue_limit=limit)
            == expected
        )
    assert family_of(t5).context_tokens(t5, tokenizer_limit=1e30, catalogue_limit=512) == 512


@pytest.mark.parametrize(
    ("stated", "has_own_head"),
    [
        (config("t5", tie_word_embeddings=True, scale_decoder_outputs=True), False),
        # how transformers 5 remembers a file that said tie_word_embeddings: false
        (config("t5", tie_word_embeddings=True, scale_decoder_outputs=False), True),
        (config("gpt_neox", tie_word_embeddings=False), True),
        (config("gpt2"), False),
    ],
)
def test_a_head_is_the_embedding_unless_the_configuration_says_otherwise(
    stated: object, has_own_head: bool
) -> None:
    assert family_of(stated).has_own_head(stated) is has_own_head
