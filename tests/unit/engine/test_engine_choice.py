"""Which models our decode loop can take."""

from __future__ import annotations

import pytest
from transformers import (
    BartConfig,
    BartForConditionalGeneration,
    LlamaConfig,
    LlamaForCausalLM,
    MambaConfig,
    MambaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
)

from engine.decode.engine import ContinuousEngine
from engine.decode.engine_choice import make_engine, supports_continuous
from engine.decode.static_engine import TransformersEngine
from engine.plan.limits import BatchLimits
from tests.continuous_engines import description, loaded
from tests.tiny_checkpoints import ALIASES

SIZES = {
    "vocab_size": 40,
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 16,
}


@pytest.mark.parametrize("alias", ALIASES)
def test_all_four_families_are_batched_continuously(alias: str) -> None:
    engine = make_engine(loaded(alias), description(alias), limits=BatchLimits(rows=2))
    assert isinstance(engine, ContinuousEngine)


def test_a_plain_attention_model_of_another_family_is_too() -> None:
    assert supports_continuous(LlamaForCausalLM(LlamaConfig(**SIZES)))


def test_windows_recurrence_and_positions_that_cannot_be_told_are_left_to_generate() -> None:
    windowed = MistralForCausalLM(MistralConfig(**SIZES, num_key_value_heads=2, sliding_window=4))
    recurrent = MambaForCausalLM(MambaConfig(vocab_size=40, hidden_size=16, num_hidden_layers=1))
    # its decoder counts positions from the length of the cache
    counted = BartForConditionalGeneration(
        BartConfig(
            vocab_size=40,
            d_model=16,
            encoder_layers=1,
            decoder_layers=1,
            encoder_attention_heads=2,
            decoder_attention_heads=2,
            encoder_ffn_dim=16,
            decoder_ffn_dim=16,
        )
    )
    assert not supports_continuous(windowed)
    assert not supports_continuous(recurrent)
    assert not supports_continuous(counted)


def test_the_fallback_has_the_rows_of_the_limits() -> None:
    model = loaded("tiny-gpt-neox")
    model.model.config.layer_types = ["sliding_attention"] * 2
    model.model.config.sliding_window = 8
    engine = make_engine(model, description("tiny"), limits=BatchLimits(rows=3))
    assert isinstance(engine, TransformersEngine)
    assert engine.micro_batch_rows == 3
