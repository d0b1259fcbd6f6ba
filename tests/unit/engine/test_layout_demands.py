"""What the planner is told of the big models is what they are."""

from __future__ import annotations

import pytest
from transformers import LlamaConfig

from engine.layout.blocks import config_of_shape
from engine.plan.demands import ModelDemands
from engine.plan.from_layout import demands_of_config

GIB, KIB = 2**30, 2**10
BIG_MODELS = ("bloom-7b1", "gpt-neox-20b", "flan-ul2", "cerebras-gpt-13b")


@pytest.fixture(scope="module")
def demands() -> dict[str, ModelDemands]:
    return {
        alias: demands_of_config(config_of_shape(alias), alias, on_gpu=True) for alias in BIG_MODELS
    }


@pytest.mark.parametrize(
    ("alias", "gib"),
    [("bloom-7b1", 7.5), ("gpt-neox-20b", 19.7), ("flan-ul2", 18.5), ("cerebras-gpt-13b", 12.2)],
)
def test_the_blocks_are_as_large_as_the_int8_model(
    alias: str, gib: float, demands: dict[str, ModelDemands]
) -> None:
    assert round(sum(b.weight_bytes for b in demands[alias].blocks) / GIB, 1) == gib


@pytest.mark.parametrize(
    ("alias", "own", "cross"),
    [
        ("bloom-7b1", 480, 0),
        ("gpt-neox-20b", 1056, 0),
        ("flan-ul2", 512, 512),
        ("cerebras-gpt-13b", 800, 0),
    ],
)
def test_the_cache_takes_what_the_shape_says(
    alias: str, own: int, cross: int, demands: dict[str, ModelDemands]
) -> None:
    assert demands[alias].self_kv_bytes_per_token == own * KIB
    assert demands[alias].cross_kv_bytes_per_token == cross * KIB


def test_only_an_encoder_decoder_has_an_encoders_blocks(
    demands: dict[str, ModelDemands],
) -> None:
    assert [alias for alias in BIG_MODELS if demands[alias].is_encoder_decoder] == ["flan-ul2"]
    assert len(demands["flan-ul2"].used_in("encode")) == 32 + 2


def test_a_store_of_t5_holds_some_linears_twice(demands: dict[str, ModelDemands]) -> None:
    assert [alias for alias in BIG_MODELS if demands[alias].more_store_bytes] == ["flan-ul2"]
    assert demands["flan-ul2"].more_store_bytes == 2 * 32 * 4096 * 16384 * 4


def test_a_tied_embedding_is_one_block_that_multiplies_as_the_head(
    demands: dict[str, ModelDemands],
) -> None:
    (embedding,) = [b for b in demands["bloom-7b1"].blocks if b.name == "embedding"]
    assert embedding.matrix_parameters == 250880 * 4096
    assert "head" not in {block.name for block in demands["bloom-7b1"].blocks}


def test_an_embedding_that_is_not_the_head_multiplies_nothing(
    demands: dict[str, ModelDemands],
) -> None:
    (embedding,) = [b for b in demands["gpt-neox-20b"].blocks if b.name == "embedding"]
    assert embedding.matrix_parameters == 0


def test_without_a_gpu_floats_are_twice_as_wide(demands: dict[str, ModelDemands]) -> None:
    config = config_of_shape("bloom-7b1")
    on_cpu = demands_of_config(config, "bloom-7b1", on_gpu=False)
    assert on_cpu.self_kv_bytes_per_token == 2 * demands["bloom-7b1"].self_kv_bytes_per_token
    assert on_cpu.store_bytes > demands["bloom-7b1"].store_bytes


def test_shared_key_and_value_heads_make_the_cache_smaller() -> None:
    config = LlamaConfig(
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=8,
        num_key_value_heads=2,
        vocab_size=100,
    )
    assert demands_of_config(config, "llama", on_gpu=True).self_kv_bytes_per_token == (
        2 * 2 * 2 * 8 * 2  # layers, keys and values, heads, head size, bytes
    )
