"""What is asked of a real GPU."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import pytest
import torch

from engine.plan.machine import machine_budgets
from engine.plan.probe import gpu_throughputs, read_throughputs

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no CUDA device"),
]


def test_the_budget_is_less_than_the_card_has_free(tmp_path: Path) -> None:
    budgets = machine_budgets(tmp_path, on_gpu=True)
    assert budgets.gpu_bytes is not None
    assert 0 < budgets.gpu_bytes < torch.cuda.mem_get_info(0)[0]


def test_rates_are_measured_once_and_kept(tmp_path: Path) -> None:
    cache = tmp_path / "throughputs.json"
    measured = gpu_throughputs(cache, tmp_path)
    assert read_throughputs(cache) == measured
    assert gpu_throughputs(cache, tmp_path) == measured


def test_measured_rates_are_those_of_hardware_that_exists(tmp_path: Path) -> None:
    measured = asdict(gpu_throughputs(tmp_path / "throughputs.json", tmp_path))
    assert 1e9 < measured["link_bytes_per_second"] < 1e12
    assert measured["link_bytes_per_second"] < measured["memory_bytes_per_second"]
    assert measured["decode_flops_per_second"] < measured["prefill_flops_per_second"] * 1.5
