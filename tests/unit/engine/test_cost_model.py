"""The cost model against what was measured, and in its own terms."""

from __future__ import annotations

from dataclasses import replace

import pytest

from engine.plan.cost import Traffic, batch_tables, kv_bytes, pass_seconds
from engine.plan.demands import BlockDemand, ModelDemands, Workload
from engine.plan.rates import T4, Throughputs
from engine.plan.residency import spread
from tests.unit.engine import planner_cases as cases

# A GPT-NeoX 20B of random weights on an H200: its link as measured, the rest
# from the data sheet. Prompts of 64 tokens.
H200 = Throughputs(
    name="H200",
    link_bytes_per_second=55.2e9,
    disk_bytes_per_second=5e9,
    memory_bytes_per_second=3.6e12,
    prefill_flops_per_second=400e12,
    decode_flops_per_second=100e12,
    layer_seconds=1.3e-3,
)
LAYERS, HIDDEN = 44, 6144
LAYER_BYTES = 12 * HIDDEN * HIDDEN
NEOX = ModelDemands(
    name="gpt-neox-20b",
    blocks=tuple(
        BlockDemand(
            name=f"decoder-{i}",
            weight_bytes=LAYER_BYTES,
            matrix_parameters=LAYER_BYTES,
            self_kv_bytes_per_token=2 * 2 * HIDDEN,
        )
        for i in range(LAYERS)
    ),
    hidden_size=HIDDEN,
    widest_size=4 * HIDDEN,
    heads=64,
    vocabulary_size=50432,
    scratch_bytes=2**26,
)
WORKLOAD = Workload(prompt_tokens=64, new_tokens=32)


@pytest.mark.parametrize(
    ("resident_layers", "rows", "measured_tokens_per_second"), [(0, 112, 310), (22.5, 24, 138)]
)
def test_a_streamed_step_is_as_fast_as_it_was_measured(
    resident_layers: float, rows: int, measured_tokens_per_second: float
) -> None:
    (table,) = batch_tables(NEOX, WORKLOAD, H200)
    streamed = Traffic(link_bytes=round((LAYERS - resident_layers) * LAYER_BYTES))
    step = table.speed(rows, Traffic(), streamed).step
    assert step.limit == "host-to-GPU link"
    assert rows / step.total == pytest.approx(measured_tokens_per_second, rel=0.1)


@pytest.mark.parametrize(
    ("compute", "link", "disk", "limit"),
    [(3.0, 2, 1, "compute"), (1.0, 2, 1, "host-to-GPU link"), (1.0, 2, 3, "disk")],
)
def test_the_slowest_of_three_is_named(compute: float, link: int, disk: int, limit: str) -> None:
    rates = replace(T4, link_bytes_per_second=1, disk_bytes_per_second=1)
    assert pass_seconds(compute, link, disk, rates).limit == limit


def test_a_causal_rows_cache_holds_prompt_and_completion() -> None:
    # and 3 columns to spare, as the engine asks for
    assert kv_bytes(NEOX, WORKLOAD, rows=3) == 3 * (64 + 32 + 3) * 44 * 2 * 2 * HIDDEN


def test_an_encoder_decoders_cache_holds_the_completion_and_the_encoded_prompt() -> None:
    model = cases.encoder_decoder([1], [1, 1], shared=1)
    # the start token, and a column to spare
    assert kv_bytes(model, WORKLOAD, rows=3) == 3 * 2 * ((1 + 32 + 1) * 4096 + 64 * 4096)


def test_no_larger_batch_needs_less_memory() -> None:
    for model in (NEOX, cases.encoder_decoder([1], [1], shared=1)):
        for table in batch_tables(model, WORKLOAD, T4):
            assert list(table.needed_bytes) == sorted(table.needed_bytes)


def test_encoding_a_whole_shard_costs_a_micro_batch_its_share() -> None:
    # Given an encoder whose copying dwarfs its computing.
    model = cases.encoder_decoder([1], [1], shared=1)
    whole, single = batch_tables(model, replace(WORKLOAD, shard_rows=8), T4)
    encode = Traffic(link_bytes=10**15)
    shared = whole.speed(2, encode, Traffic()).prompt_seconds
    alone = single.speed(2, encode, Traffic()).prompt_seconds
    assert shared == pytest.approx(alone * 2 / 8)


@pytest.mark.parametrize(("count", "chosen"), [(44, 22), (44, 23), (32, 5), (7, 7), (9, 1)])
def test_layers_are_spread_as_evenly_as_can_be(count: int, chosen: int) -> None:
    positions = spread(count, chosen)
    gaps = cases.gaps_around([i in positions for i in range(count)])
    assert len(positions) == chosen
    assert max(gaps) - min(gaps) <= 1
