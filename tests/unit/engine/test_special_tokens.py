"""What ends and begins a completion is told by the checkpoint and by its tokenizer."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from engine.decode.special_tokens import SpecialTokens, special_tokens_of


def special_tokens(
    *,
    eos: Any = None,
    tokenizer_eos: int | None = None,
    is_encoder_decoder: bool = False,
    **stated: Any,
) -> SpecialTokens:
    settings = {
        "eos_token_id": eos,
        "pad_token_id": None,
        "bos_token_id": None,
        "decoder_start_token_id": None,
        "forced_bos_token_id": None,
    }
    model = SimpleNamespace(
        config=SimpleNamespace(is_encoder_decoder=is_encoder_decoder),
        generation_config=SimpleNamespace(**(settings | stated)),
    )
    tokenizer = SimpleNamespace(eos_token_id=tokenizer_eos, pad_token_id=None, bos_token_id=None)
    return special_tokens_of(model, tokenizer)


@pytest.mark.parametrize(
    ("settings_eos", "tokenizer_eos", "expected"),
    [
        (2, 7, (2, 7)),
        ([2, 3], 7, (2, 3, 7)),
        ([2, 7], 7, (2, 7)),
        (2, None, (2,)),
        (None, 7, (7,)),
        ([], 7, (7,)),
        (None, None, ()),
    ],
)
def test_a_completion_ends_at_the_end_tokens_of_settings_and_tokenizer(
    settings_eos: Any, tokenizer_eos: int | None, expected: tuple[int, ...]
) -> None:
    assert special_tokens(eos=settings_eos, tokenizer_eos=tokenizer_eos).eos == expected


@pytest.mark.parametrize(("is_encoder_decoder", "expected"), [(True, 9), (False, None)])
def test_the_forced_first_token_is_that_of_an_encoder_decoder(
    is_encoder_decoder: bool, expected: int | None
) -> None:
    special = special_tokens(eos=2, forced_bos_token_id=9, is_encoder_decoder=is_encoder_decoder)
    assert special.forced_first == expected
