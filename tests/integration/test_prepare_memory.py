"""Making a store takes little memory, whatever the model's size."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from transformers import BloomConfig, GPT2Config, GPTNeoXConfig

from tests.random_checkpoints import write_random_checkpoint

ROOT = Path(__file__).resolve().parents[2]
MIB, GIB = 2**20, 2**30


def measured(config: Any, scratch: Path) -> dict[str, Any]:
    """What making a store of random weights took, in a process of its own."""
    checkpoint_bytes = write_random_checkpoint(config, scratch / "checkpoint")
    try:
        run = subprocess.run(
            [sys.executable, "-m", "tests.prepare_memory", scratch / "checkpoint", scratch],
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=False,
        )
    finally:
        shutil.rmtree(scratch)
    assert run.returncode == 0, run.stderr
    report: dict[str, Any] = json.loads(run.stdout)
    return {**report, "checkpoint_bytes": checkpoint_bytes}


@pytest.mark.parametrize(
    "config",
    [
        # A table of 250 MiB, as BLOOM's is the largest of its tensors.
        BloomConfig(vocab_size=131_072, hidden_size=1024, n_layer=2),
        # Linears that have to be transposed.
        GPT2Config(
            vocab_size=1024, n_embd=2048, n_layer=4, n_head=8, bos_token_id=0, eos_token_id=0
        ),
    ],
    ids=["a-large-table", "transposed-linears"],
)
def test_a_small_part_of_a_checkpoint_is_in_memory(config: Any, tmp_path: Path) -> None:
    report = measured(config, tmp_path / "scratch")

    assert report["checkpoint_bytes"] > 300 * MIB
    assert report["peak_bytes"] - report["baseline_bytes"] < 64 * MIB


def test_three_gigabytes_are_made_int8_under_a_ceiling_of_two(tmp_path: Path) -> None:
    config = GPTNeoXConfig(
        vocab_size=50_432,
        hidden_size=4096,
        intermediate_size=16_384,
        num_hidden_layers=6,
        num_attention_heads=32,
    )

    report = measured(config, tmp_path / "scratch")

    assert report["checkpoint_bytes"] > 3e9
    assert report["peak_bytes"] < 2 * GIB
