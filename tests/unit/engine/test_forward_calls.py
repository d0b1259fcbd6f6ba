"""When a stock model is given a mask, and when it can do without."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from engine.cache.shape import CacheShape, LayerShape
from engine.decode.forward import ForwardCalls

PAD = 0


class Model:
    """Takes what a causal model takes, and keeps it."""

    def __init__(self, model_type: str, attention: str, pad_token_id: int | None) -> None:
        self.config: Any = SimpleNamespace(
            model_type=model_type,
            _attn_implementation=attention,
            pad_token_id=pad_token_id,
            is_encoder_decoder=False,
            get_text_config=lambda **_: self.config,
        )
        self.given: dict[str, Any] = {}

    def named_modules(self) -> list[tuple[str, torch.nn.Module]]:
        return []

    def forward(self, input_ids: Any, position_ids: Any = None, **_others: Any) -> Any:
        raise AssertionError("only its signature is looked at")

    def __call__(self, **given: Any) -> Any:
        self.given = given
        rows, tokens = given["input_ids"].shape
        return SimpleNamespace(logits=torch.zeros(rows, tokens, 4))


BLOOM = ("bloom", "eager", 3)
GPT_NEOX = ("gpt_neox", "sdpa", None)
PADDED_GPT2 = ("gpt2", "sdpa", 3)
PLAIN = CacheShape(layers=(LayerShape(heads=1, key_size=2, value_size=2),))


def calls_of(model: Model) -> ForwardCalls:
    return ForwardCalls(model, PLAIN, torch.device("cpu"), PAD)


@pytest.mark.parametrize("kind", [BLOOM, GPT_NEOX])
def test_rows_of_one_length_need_no_mask(kind: tuple[str, str, int | None]) -> None:
    model = Model(*kind)
    calls_of(model).prefill([[1, 2, 3], [2, 3, 1]], cache=None)
    assert model.given.get("attention_mask") is None
    assert model.given["position_ids"].tolist() == [[0, 1, 2], [0, 1, 2]]
    calls_of(model).decode([1, 2], [3, 3], cache=None)
    assert model.given.get("attention_mask") is None


@pytest.mark.parametrize("kind", [BLOOM, GPT_NEOX, PADDED_GPT2])
def test_rows_of_other_lengths_are_told_apart_by_a_mask(kind: tuple[str, str, int | None]) -> None:
    model = Model(*kind)
    calls_of(model).prefill([[1, 2, 3], [2]], cache=None)
    assert model.given["attention_mask"].tolist() == [[1, 1, 1], [0, 0, 1]]
    calls_of(model).decode([1, 2], [3, 1], cache=None)
    mask = model.given["attention_mask"].reshape(2, 4)
    assert mask.tolist() == [[1, 1, 1, 1], [0, 0, 1, 1]]


def test_a_model_that_would_look_for_padding_always_gets_a_mask() -> None:
    model = Model(*PADDED_GPT2)
    calls_of(model).prefill([[1, 2, 3], [2, 3, 1]], cache=None)
    assert model.given["attention_mask"].tolist() == [[1, 1, 1], [1, 1, 1]]
    calls_of(model).decode([1, 2], [3, 3], cache=None)
    assert model.given["attention_mask"].all()
