"""The planner's promises, for any model, machine and budget."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from engine.plan.demands import Phase, Workload
from engine.plan.plan import Budgets, CannotRunError, Plan
from engine.plan.rates import T4
from engine.plan.residency import SLOTS, spread
from engine.plan.search import make_plan
from tests.unit.engine import planner_cases as cases
from tests.unit.engine.planner_cases import MIB, Case

planner = settings(suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much])
PLENTY = 10**12
plans = cases.planned_cases().map(cases.Case.plan)


@planner
@given(plans)
def test_a_plan_is_never_over_any_budget(plan: Plan) -> None:
    assert plan.memory.device_bytes <= plan.budgets.device_bytes
    assert plan.memory.ram_tier_bytes <= plan.budgets.ram_tier_bytes
    assert plan.memory.store_bytes <= plan.budgets.disk_bytes


@planner
@given(plans)
def test_every_block_is_placed_once(plan: Plan) -> None:
    assert Counter(placed.block for placed in plan.blocks) == Counter(plan.model.blocks)


@planner
@given(plans)
def test_the_bytes_of_a_tier_are_those_of_its_blocks(plan: Plan) -> None:
    memory = plan.memory
    assert memory.resident_bytes == sum(b.weight_bytes for b in plan.blocks_at("resident"))
    assert memory.ram_bytes == sum(b.weight_bytes for b in plan.blocks_at("ram"))
    copied = [b.link_bytes for b in (*plan.blocks_at("ram"), *plan.blocks_at("disk"))]
    largest = max(copied, default=0)
    assert largest <= memory.slot_bytes <= plan.slots * largest
    assert plan.slots <= SLOTS
    assert (plan.slots == 0) == (largest == 0)


@planner
@given(plans)
def test_a_plan_has_a_row_and_no_more_than_the_shard(plan: Plan) -> None:
    assert 1 <= plan.rows <= plan.workload.shard_rows


@planner
@given(plans)
def test_a_step_takes_as_long_as_the_slowest_of_compute_link_and_disk(plan: Plan) -> None:
    step = plan.prediction.step
    assert step.total == max(step.compute, step.link, step.disk)


@planner
@given(plans, st.sampled_from(["encode", "decode"]))
def test_resident_layers_are_spread_evenly(plan: Plan, phase: Phase) -> None:
    tiers = [tier == "resident" for tier in cases.layers_of(plan, phase)]
    assume(any(tiers))
    gaps = cases.gaps_around(tiers)
    assert max(gaps) - min(gaps) <= 1


@planner
@given(plans, st.sampled_from(["encode", "decode"]))
def test_no_two_streamed_layers_are_neighbours_where_half_are_resident(
    plan: Plan, phase: Phase
) -> None:
    tiers = cases.layers_of(plan, phase)
    streamed = [tier != "resident" for tier in tiers]
    assume(len(tiers) > 1 and 2 * sum(streamed) <= len(tiers))
    assert not any(here and streamed[i - 1] for i, here in enumerate(streamed))


@given(st.integers(0, 80), st.integers(0, 80))
def test_spreading_chooses_as_many_as_it_was_told(count: int, chosen: int) -> None:
    assume(chosen <= count)
    assert len(spread(count, chosen)) == chosen


@planner
@given(cases.planned_cases(), st.tuples(*[cases.extra_bytes] * 3))
def test_more_memory_of_any_kind_never_makes_it_slower(
    case: Case, more: tuple[int, int, int]
) -> None:
    before = case.plan().prediction.tokens_per_second
    # but for what a float's last digit may do
    assert case.with_more(*more).plan().prediction.tokens_per_second >= before * (1 - 1e-12)


@planner
@given(cases.any_cases)
def test_the_smallest_budgets_that_a_refusal_names_really_do(case: Case) -> None:
    assert case.granted(case.refusal()).refusal() == {}


@planner
@given(cases.any_cases)
def test_a_byte_less_than_a_refusal_names_does_not(case: Case) -> None:
    short = case.refusal()
    for resource, size in short.items():
        assert case.granted({**short, resource: size - 1}).refusal()


ONE_ROW = Workload(prompt_tokens=8, new_tokens=8, shard_rows=1)
MANY_ROWS = Workload(prompt_tokens=64, new_tokens=64, shard_rows=256)
TEN_LAYERS = cases.causal_model([4 * MIB] * 10, embedding=MIB, head=MIB)


def test_with_plenty_of_memory_nothing_is_streamed() -> None:
    budgets = Budgets(gpu_bytes=PLENTY, cpu_bytes=PLENTY, disk_bytes=PLENTY)
    plan = make_plan(TEN_LAYERS, ONE_ROW, budgets, T4)
    assert {placed.tier for placed in plan.blocks} == {"resident"}
    assert plan.memory.slot_bytes == 0


def test_the_cache_takes_memory_from_resident_layers_where_more_rows_pay() -> None:
    # Given a card that holds the weights and little else.
    budgets = Budgets(gpu_bytes=60 * MIB, cpu_bytes=PLENTY, disk_bytes=PLENTY)
    one = make_plan(TEN_LAYERS, ONE_ROW, budgets, T4)
    many = make_plan(TEN_LAYERS, MANY_ROWS, budgets, T4)
    assert len(many.blocks_at("resident")) < len(one.blocks_at("resident"))


def test_an_encoder_is_streamed_rather_than_the_decoder() -> None:
    model = cases.encoder_decoder([4 * MIB] * 8, [4 * MIB] * 8, shared=MIB)
    budgets = Budgets(gpu_bytes=60 * MIB, cpu_bytes=PLENTY, disk_bytes=PLENTY)
    slow_link = replace(T4, link_bytes_per_second=1e8)
    plan = make_plan(model, replace(MANY_ROWS, shard_rows=4), budgets, slow_link)
    assert cases.layers_of(plan, "decode") == ["resident"] * 8
    assert "ram" in cases.layers_of(plan, "encode")


def test_without_a_gpu_what_is_not_resident_is_read_from_disk() -> None:
    budgets = Budgets(gpu_bytes=None, cpu_bytes=30 * MIB, disk_bytes=PLENTY)
    plan = make_plan(TEN_LAYERS, ONE_ROW, budgets, T4)
    assert {placed.tier for placed in plan.blocks} == {"resident", "disk"}
    assert plan.memory.ram_tier_bytes == 0


def test_a_refusal_names_every_budget_that_is_too_small() -> None:
    budgets = Budgets(gpu_bytes=0, cpu_bytes=0, disk_bytes=0)
    with pytest.raises(CannotRunError, match="needs at least") as refused:
        make_plan(TEN_LAYERS, ONE_ROW, budgets, T4)
    assert set(refused.value.short) == {"GPU memory", "CPU memory", "disk space"}
