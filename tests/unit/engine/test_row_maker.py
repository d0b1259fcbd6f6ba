"""What a prompt is refused for, with advice that fits."""

from __future__ import annotations

from typing import Any

import pytest

from engine.decode.prompts import RefusedPromptError, RowMaker
from engine.decode.special_tokens import SpecialTokens
from engine.interface import GenerationRequest
from tests.tiny_checkpoints import tiny_tokenizer


def refusal(tokenizer: Any, prompt: str, *, vocabulary_rows: int) -> RefusedPromptError:
    maker = RowMaker(
        tokenizer=tokenizer,
        special_tokens=SpecialTokens(eos=(0,), pad=1, start=1),
        is_encoder_decoder=False,
        context_tokens=None,
        vocabulary_rows=vocabulary_rows,
    )
    with pytest.raises(RefusedPromptError) as caught:
        maker.row(GenerationRequest(key=0, prompt=prompt), taken=0.0)
    return caught.value


def test_a_word_that_the_model_does_not_have_means_that_the_tokenizer_is_another_model_s() -> None:
    error = refusal(tiny_tokenizer(), "the queue holds", vocabulary_rows=40).error
    assert error.code == "invalid_text"
    assert "tokenizer files are not this model's" in error.message


def test_a_special_token_that_the_model_does_not_have_is_to_be_left_out() -> None:
    tokenizer = tiny_tokenizer()
    rows = len(tokenizer)
    tokenizer.add_tokens(["<image>"], special_tokens=True)
    error = refusal(tokenizer, "<image>", vocabulary_rows=rows).error
    assert "leave that special token out" in error.message
