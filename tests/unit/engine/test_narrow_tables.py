"""Tables in half precision against the same numbers in float32."""

import pytest
import torch
from transformers import AutoConfig, GemmaConfig, OPTConfig

from engine.int8.product import CPU_SCRATCH_BYTES
from engine.layout.blocks import ModelLayout, config_of_shape, layout_of
from engine.layout.skeleton import HALF_DTYPES
from engine.model.embeddings import NarrowEmbedding, NarrowHead

SMALL = {"vocab_size": 300, "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}


@pytest.mark.parametrize("dtype", HALF_DTYPES)
def test_an_embedding_gives_the_lines_in_float32(dtype: torch.dtype) -> None:
    table = torch.randn(11, 4).to(dtype)
    embedding = NarrowEmbedding(torch.nn.Embedding(11, 4, device="meta"))
    embedding.weight = table
    ids = torch.tensor([[3, 0, 10], [3, 3, 7]])

    lines = embedding(ids)

    assert lines.dtype is torch.float32
    assert torch.equal(lines, table.float()[ids])


@pytest.mark.parametrize("dtype", HALF_DTYPES)
@pytest.mark.parametrize("has_bias", [False, True])
@pytest.mark.parametrize("shape", [(1, 1, 64), (5, 64), (2, 3, 64)])
def test_a_head_multiplies_as_a_linear_in_float32(
    shape: tuple[int, ...], has_bias: bool, dtype: torch.dtype
) -> None:
    pieces, lines = 3, CPU_SCRATCH_BYTES // (64 * 4)
    outputs = pieces * lines - 7  # the last one is shorter
    weight, bias = torch.randn(outputs, 64).to(dtype), torch.randn(outputs)
    head = NarrowHead(torch.nn.Linear(64, outputs, device="meta"))
    head.weight = weight
    if has_bias:
        head.bias = torch.nn.Parameter(bias)
    x = torch.randn(shape)

    with torch.inference_mode():
        product = head(x)

    expected = torch.nn.functional.linear(x, weight.float(), bias if has_bias else None)
    torch.testing.assert_close(product, expected, rtol=1e-5, atol=1e-5)


def dtypes_of(layout: ModelLayout) -> dict[str, set[torch.dtype]]:
    return {
        block.name: {t.dtype for t in block.tensors if t.name.endswith("weight")}
        for block in layout.blocks
        if block.kind in ("embedding", "head")
    }


def test_on_a_cpu_tables_are_what_the_checkpoint_has() -> None:
    config = config_of_shape("gpt-neox-20b")

    for own in HALF_DTYPES:
        config.dtype = own
        assert dtypes_of(layout_of(config, dtype=torch.float32)) == {
            "embedding": {own},
            "head": {own},
        }

    config.dtype = torch.float32
    assert dtypes_of(layout_of(config, dtype=torch.float32))["head"] == {torch.float32}


def test_on_a_gpu_all_floats_are_of_one_dtype() -> None:
    config = config_of_shape("gpt-neox-20b")
    config.dtype = torch.bfloat16

    assert dtypes_of(layout_of(config, dtype=torch.float16))["head"] == {torch.float16}


def test_a_layout_leaves_the_configuration_as_it_is() -> None:
    config = AutoConfig.for_model("bloom", dtype="float16", hidden_size=64, n_layer=1, n_head=4)

    layout_of(config, dtype=torch.float32)

    assert config.dtype in ("float16", torch.float16)


def test_embeddings_of_another_kind_stay_as_they_are() -> None:
    # Gemma scales the lines, and OPT finds positions in a mask.
    gemma = layout_of(
        GemmaConfig(**SMALL, head_dim=16, intermediate_size=128, dtype="float16"),
        dtype=torch.float32,
    )
    opt = layout_of(
        OPTConfig(**SMALL, ffn_dim=128, word_embed_proj_dim=64, dtype="float16"),
        dtype=torch.float32,
    )

    assert dtypes_of(gemma) == {"embedding": {torch.float32}}
    assert dtypes_of(opt) == {"embedding": {torch.float16, torch.float32}}
    assert [b.is_lookup for b in (*gemma.blocks, *opt.blocks) if b.kind == "embedding"] == [
        False,
        False,
    ]
