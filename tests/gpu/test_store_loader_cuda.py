"""On a CUDA device: resident blocks on it, blocks in RAM pinned to the byte."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import AutoConfig

from engine.layout.blocks import layout_of
from engine.weights.loader import load_store
from tests.placements import (
    PLACEMENTS,
    bytes_by_tier,
    differing,
    tensors_by_safetensors,
    tensors_wherever,
    tiers_of,
)
from tests.stores import ignore, never, prepare
from tests.tiny_checkpoints import ALIASES, checkpoint_folder

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no CUDA device"),
]


@pytest.mark.parametrize("placement", PLACEMENTS)
@pytest.mark.parametrize("alias", ALIASES)
def test_every_block_is_at_home(alias: str, placement: str, tmp_path: Path) -> None:
    cuda = torch.device("cuda", 0)
    folder = checkpoint_folder(alias, tmp_path)
    layout = layout_of(AutoConfig.from_pretrained(folder), dtype=torch.float16)
    store = prepare(folder, tmp_path / "stores", device=cuda, dtype=torch.float16)
    tiers = tiers_of(layout, placement)

    with load_store(store, tiers, cuda, on_progress=ignore, should_stop=never) as loaded:
        for tier, expected in bytes_by_tier(layout, tiers).items():
            assert loaded.bytes_at(tier) == pytest.approx(expected, rel=0.02)
        for block in loaded.blocks.values():
            theirs = tensors_by_safetensors(block.stored)
            assert differing(tensors_wherever(block), theirs) == []
            if block.flat is not None:
                assert block.flat.is_cuda == (block.tier == "resident")
                assert block.flat.is_pinned() == (block.tier == "ram")


def test_pinned_memory_is_let_go(tmp_path: Path) -> None:
    cuda = torch.device("cuda", 0)
    folder = checkpoint_folder("tiny-bloom", tmp_path)
    layout = layout_of(AutoConfig.from_pretrained(folder), dtype=torch.float16)
    store = prepare(folder, tmp_path / "stores", device=cuda, dtype=torch.float16)
    tiers = tiers_of(layout, "all-in-ram")
    loaded = load_store(store, tiers, cuda, on_progress=ignore, should_stop=never)
    buffers = [block.flat for block in loaded.blocks.values() if block.flat is not None]

    loaded.close()

    assert buffers
    assert not any(buffer.is_pinned() for buffer in buffers)
