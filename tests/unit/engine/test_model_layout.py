"""What a model consists of is known from its configuration alone."""

from __future__ import annotations

from functools import cache
from itertools import chain
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from transformers import AutoConfig, LlamaConfig, MixtralConfig

from engine.layout.blocks import BlockLayout, ModelLayout, config_of_shape, layout_of
from tests.tiny_checkpoints import ALIASES, checkpoint_folder

GIB = 2**30
SHAPED = ("bloom-7b1", "gpt-neox-20b", "flan-ul2", "cerebras-gpt-13b")


@cache
def shaped(alias: str) -> ModelLayout:
    return layout_of(config_of_shape(alias))


@pytest.mark.parametrize(
    ("alias", "parameters"),
    [
        ("bloom-7b1", 7_069_016_064),
        ("gpt-neox-20b", 20_554_567_680),
        ("flan-ul2", 19_591_209_984),
        ("cerebras-gpt-13b", 12_853_386_240),
    ],
)
def test_the_parameter_counts_are_the_published_ones(alias: str, parameters: int) -> None:
    assert shaped(alias).parameter_count == parameters


@pytest.mark.parametrize(
    ("alias", "gib"),
    # flan-ul2 is 18.3 without its untied head of 0.25 GiB
    [("bloom-7b1", 7.5), ("gpt-neox-20b", 19.7), ("flan-ul2", 18.5), ("cerebras-gpt-13b", 12.2)],
)
def test_the_int8_sizes_are_the_published_ones(alias: str, gib: float) -> None:
    assert round(shaped(alias).int8_bytes / GIB, 1) == gib


@pytest.mark.parametrize(
    ("alias", "encoder_blocks", "decoder_blocks"),
    [
        ("bloom-7b1", 0, 30),
        ("gpt-neox-20b", 0, 44),
        ("flan-ul2", 32, 32),
        ("cerebras-gpt-13b", 0, 40),
    ],
)
def test_every_transformer_block_is_a_block_in_execution_order(
    alias: str, encoder_blocks: int, decoder_blocks: int
) -> None:
    blocks = shaped(alias).blocks

    names = [block.name for block in blocks if block.kind in ("encoder", "decoder")]

    expected = chain(
        (f"encoder-{index:03d}" for index in range(encoder_blocks)),
        (f"decoder-{index:03d}" for index in range(decoder_blocks)),
    )
    assert names == list(expected)


@pytest.mark.parametrize("alias", SHAPED)
def test_blocks_of_a_kind_are_of_one_size(alias: str) -> None:
    blocks = shaped(alias).blocks

    for kind in ("encoder", "decoder"):
        # T5's first block holds the table of relative positions for all of them
        sizes = {_bytes_of_linears(block) for block in blocks if block.kind == kind}
        assert len(sizes) <= 1


def _bytes_of_linears(block: BlockLayout) -> int:
    return sum(tensor.bytes for tensor in block.tensors if tensor.quantised)


@pytest.mark.parametrize(
    ("alias", "kinds"),
    [
        ("bloom-7b1", {"embedding", "decoder", "rest"}),
        ("gpt-neox-20b", {"embedding", "decoder", "rest", "head"}),
        ("flan-ul2", {"embedding", "encoder", "decoder", "rest", "head"}),
        ("cerebras-gpt-13b", {"embedding", "decoder", "rest"}),
    ],
)
def test_a_head_is_a_block_only_where_it_is_not_the_embedding(alias: str, kinds: set[str]) -> None:
    assert {block.kind for block in shaped(alias).blocks} == kinds


@pytest.mark.parametrize("alias", ALIASES)
def test_the_names_are_those_of_the_checkpoint_file(alias: str, tmp_path: Path) -> None:
    folder = checkpoint_folder(alias, tmp_path)

    layout = layout_of(AutoConfig.from_pretrained(folder))

    with safe_open(folder / "model.safetensors", framework="pt") as file:
        assert {tensor.name for tensor in layout.tensors if tensor.is_parameter} == set(file.keys())


def test_a_linear_is_an_int8_weight_with_scales_and_a_format() -> None:
    block = shaped("gpt-neox-20b").blocks[1]

    prefix = "gpt_neox.layers.0.mlp.dense_h_to_4h"
    found = {
        tensor.name: (tensor.dtype, tensor.shape, tensor.bytes)
        for tensor in block.tensors
        if tensor.name.startswith(prefix)
    }

    assert found == {
        f"{prefix}.weight": (torch.int8, (24576, 6144), 24576 * 6144),
        f"{prefix}.SCB": (torch.float32, (24576,), 4 * 24576),
        f"{prefix}.weight_format": (torch.uint8, (), 1),
        f"{prefix}.bias": (torch.float16, (24576,), 2 * 24576),
    }


def test_a_transposed_linear_is_laid_out_by_its_outputs() -> None:
    block = shaped("cerebras-gpt-13b").blocks[1]

    (weight,) = (t for t in block.tensors if t.name.endswith("h.0.mlp.c_fc.weight"))

    assert weight.shape == (20480, 5120)


def test_what_transformers_keeps_in_float_costs_flan_ul2_twelve_gib() -> None:
    config = config_of_shape("flan-ul2")

    more = layout_of(config, as_transformers=True).int8_bytes - layout_of(config).int8_bytes

    assert round(more / GIB) == 12


def test_a_model_of_no_known_family_is_laid_out_too() -> None:
    config = LlamaConfig(vocab_size=100, hidden_size=64, intermediate_size=128, num_hidden_layers=2)

    blocks = layout_of(config).blocks

    assert [block.name for block in blocks] == [
        "embedding",
        "decoder-000",
        "decoder-001",
        "rest",
        "head",
    ]


def test_a_mixture_whose_experts_are_merged_is_laid_out_too() -> None:
    config = MixtralConfig(
        vocab_size=100, hidden_size=64, intermediate_size=128, num_hidden_layers=2
    )

    assert layout_of(config).int8_bytes > 0


def test_an_alias_without_a_shape_is_a_key_error() -> None:
    with pytest.raises(KeyError):
        config_of_shape("nobody")
