"""What ends and begins a completion is told by the checkpoint and by its tokenizer."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from engine.decode.special_tokens import SpecialTokens, special_tokens_of


def special_tokens(*, eos: Any = None, tokenizer_eos: int | None = None, **stated: Any) -> Any:
    settings = {
        "eos_token_id": eos,
        "pad_token_id": None,
        "bos_token_id": None,
        "decoder_start_token_id": None,
        "forced_bos_token_id": None,
    }
    model = SimpleNamespace(
        config=SimpleNamespace(), generation_config=SimpleNamespace(**(settings | stated))
    )
    tokenizer = SimpleNamespace(eos_token_id=tokenizer_eos, pad_token_id=None, bos_token_id=None)
    found: SpecialTokens = special_tokens_of(model, tokenizer)
    return found


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
