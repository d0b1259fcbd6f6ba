"""Advice names what would really help."""

from __future__ import annotations

from dataclasses import replace

from engine.plan.advice import advice
from engine.plan.demands import Workload
from engine.plan.plan import Budgets
from engine.plan.rates import T4
from engine.plan.search import make_plan
from tests.unit.engine import planner_cases as cases
from tests.unit.engine.planner_cases import MIB

MODEL = cases.causal_model([4 * MIB] * 10, embedding=MIB, head=MIB)
WORKLOAD = Workload(prompt_tokens=64, new_tokens=64, shard_rows=4)
PLENTY = 10**12


def advised(budgets: Budgets, workload: Workload = WORKLOAD, **rates: float) -> str:
    return advice(make_plan(MODEL, workload, budgets, replace(T4, **rates)))  # type: ignore[arg-type]


def test_reading_blocks_from_disk_calls_for_cpu_memory() -> None:
    tight = Budgets(gpu_bytes=30 * MIB, cpu_bytes=10 * MIB, disk_bytes=PLENTY)
    assert "of CPU memory to use" in advised(tight, disk_bytes_per_second=1e6)


def test_memory_to_spare_calls_for_larger_shards() -> None:
    plenty = Budgets(gpu_bytes=PLENTY, cpu_bytes=PLENTY, disk_bytes=PLENTY)
    assert advised(plenty).startswith("With --shard-size 8, about ")


def test_a_full_card_calls_for_shorter_completions() -> None:
    full = Budgets(gpu_bytes=56 * MIB, cpu_bytes=PLENTY, disk_bytes=PLENTY)
    many_rows = replace(WORKLOAD, shard_rows=10_000)
    assert advised(full, many_rows).startswith("Rows that end sooner leave room for more")


def test_where_nothing_helps_the_bound_is_named() -> None:
    one_token = Workload(prompt_tokens=64, new_tokens=1, shard_rows=10_000)
    full = Budgets(gpu_bytes=56 * MIB, cpu_bytes=PLENTY, disk_bytes=PLENTY)
    assert "its bound is " in advised(full, one_token)
