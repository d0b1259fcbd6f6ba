"""Rows that come and go while the weights stream past."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from functools import cache

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer

from engine.decode.engine import DecodeEngine
from engine.interface import GenerationRequest, SamplingParameters
from engine.model.loaded import Int8Model
from engine.model.place import place_model
from engine.plan.limits import BatchLimits
from tests.continuous_engines import TrickleFeed, by_key, description, said, windows
from tests.oracle import Said
from tests.placements import tiers_of
from tests.stores import CPU, ignore, never, prepare
from tests.tiny_checkpoints import ALIASES, checkpoint_folder

PROMPTS = ("A", "The queue holds", "Every prompt is written to the database before a message")
PARAMETERS = (
    SamplingParameters(max_new_tokens=2),
    SamplingParameters(max_new_tokens=9, repetition_penalty=1.3),
    SamplingParameters(max_new_tokens=6, temperature=1.2, top_k=20, seed=3),
    SamplingParameters(max_new_tokens=12, stop=("e ",)),
)
ASKED = st.lists(
    st.tuples(st.sampled_from(PROMPTS), st.sampled_from(PARAMETERS)), min_size=1, max_size=9
)

Place = Callable[[str, str], Int8Model]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    scratch = tmp_path_factory.mktemp("streamed")

    with ExitStack() as ends:

        @cache
        def place_once(alias: str, placement: str) -> Int8Model:
            store = prepare(
                checkpoint_folder(alias, scratch), scratch / "stores" / alias, dtype=torch.float32
            )
            tiers = tiers_of(store.layout, placement)
            for block in store.layout.blocks:
                if block.kind in ("rest", "embedding"):
                    tiers[block.name] = "resident"
            placed = place_model(
                store,
                tiers,
                CPU,
                tokenizer=AutoTokenizer.from_pretrained(store.folder),
                mode="w8a16",
                on_progress=ignore,
                should_stop=never,
            )
            ends.callback(placed.free)
            # Without what ends it: each test closes an engine of its own around it.
            return replace(placed, free=lambda: None)

        yield place_once


@pytest.mark.parametrize("placement", ["all-on-disk", "mixed"])
@pytest.mark.parametrize("alias", ALIASES)
def test_every_request_says_what_it_says_alone(alias: str, placement: str, place: Place) -> None:
    model = place(alias, placement)

    @cache
    def alone(prompt: str, parameters: SamplingParameters) -> Said:
        asked = GenerationRequest(key=0, prompt=prompt, parameters=parameters)
        engine = DecodeEngine(model, description(alias, 256), limits=BatchLimits(rows=1))
        return said(by_key(windows(engine, [asked]))[0])

    @settings(
        max_examples=6, deadline=None, suppress_health_check=[HealthCheck.too_slow], database=None
    )
    @given(
        asked=ASKED,
        portions=st.lists(st.integers(min_value=1, max_value=4), max_size=4),
        limits=st.builds(
            BatchLimits,
            rows=st.integers(min_value=1, max_value=5),
            prefill_tokens=st.sampled_from([4, 64]),
            encoded_rows=st.integers(min_value=1, max_value=6),
        ),
    )
    def holds(
        asked: list[tuple[str, SamplingParameters]], portions: list[int], limits: BatchLimits
    ) -> None:
        requests = [
            GenerationRequest(key=key, prompt=prompt, parameters=parameters)
            for key, (prompt, parameters) in enumerate(asked)
        ]
        engine = DecodeEngine(model, description(alias, 256), limits=limits)
        batches = windows(engine, TrickleFeed(requests, portions))
        assert {key: said(result) for key, result in by_key(batches).items()} == {
            key: alone(*each) for key, each in enumerate(asked)
        }
        assert sum(batch.streamed_bytes for batch in batches) > 0

    holds()


def test_a_prompt_costs_no_pass_of_its_own(place: Place) -> None:
    # given rows that join in nearly every step
    model = place("tiny-gpt-neox", "all-on-disk")
    requests = [
        GenerationRequest(
            key=key,
            prompt=PROMPTS[key % 3],
            parameters=SamplingParameters(max_new_tokens=1 + key % 4, eos_token_ids=()),
        )
        for key in range(16)
    ]
    engine = DecodeEngine(model, description("tiny", 256), limits=BatchLimits(rows=3))
    before = model.passes.totals.streamed_bytes
    batches = windows(engine, requests)
    steps = sum(batch.steps for batch in batches)
    streamed = model.passes.totals.streamed_bytes - before
    # then every streamed block is fetched once a step, and some ahead of the next
    one_pass = pass_bytes(model)
    assert steps * one_pass <= streamed + one_pass
    assert streamed <= (steps + 1) * one_pass


def pass_bytes(model: Int8Model) -> int:
    """Of the weights that stream by in one pass: one token's, in the middle of others."""
    engine = DecodeEngine(model, description("tiny", 256), limits=BatchLimits(rows=1))

    def streamed(new_tokens: int) -> int:
        parameters = SamplingParameters(max_new_tokens=new_tokens, eos_token_ids=())
        asked = GenerationRequest(key=0, prompt="A", parameters=parameters)
        return sum(batch.streamed_bytes for batch in windows(engine, [asked]))

    streamed(1)
    return (streamed(9) - streamed(1)) // 8
