"""Rows that come and go, on tiny float32 models of all four families."""

from __future__ import annotations

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from engine.cache.budget import spare_columns
from engine.cache.format import CacheDtype
from engine.decode.engine import DecodeEngine
from engine.interface import GenerationRequest, GenerationResult, RequestList, SamplingParameters
from engine.plan.limits import BatchLimits
from tests.continuous_engines import (
    PROMPTS,
    ShuffledPasses,
    TrickleFeed,
    WatchedPasses,
    alone,
    by_key,
    continuous,
    description,
    loaded,
    never,
    request,
    said,
    windows,
)
from tests.tiny_checkpoints import ALIASES

# Few enough that what each says alone is soon known.
PARAMETERS = (
    SamplingParameters(max_new_tokens=1),
    SamplingParameters(max_new_tokens=3),
    SamplingParameters(max_new_tokens=17, min_new_tokens=5),
    SamplingParameters(max_new_tokens=8, repetition_penalty=1.4),
    SamplingParameters(max_new_tokens=11, temperature=0.9, top_k=12, seed=3),
    SamplingParameters(max_new_tokens=6, temperature=1.3, top_p=0.8, min_new_tokens=2, seed=-5),
    SamplingParameters(max_new_tokens=14, temperature=1.3, repetition_penalty=1.2, seed=2**40),
    SamplingParameters(max_new_tokens=20, stop=("e", "th")),
)
ASKED = st.lists(
    st.tuples(st.sampled_from(PROMPTS), st.sampled_from(PARAMETERS)), min_size=1, max_size=14
)
PORTIONS = st.lists(st.integers(min_value=1, max_value=5), max_size=6)


def numbered(asked: list[tuple[str, SamplingParameters]]) -> list[GenerationRequest]:
    return [
        GenerationRequest(key=key, prompt=prompt, parameters=parameters)
        for key, (prompt, parameters) in enumerate(asked)
    ]


@pytest.mark.parametrize("alias", ALIASES)
@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    asked=ASKED,
    portions=PORTIONS,
    rows=st.integers(min_value=1, max_value=6),
    budget_rows=st.none() | st.floats(min_value=1.0, max_value=6.0),
    prefill_tokens=st.sampled_from([3, 16, 64]),
    encoded_rows=st.integers(min_value=1, max_value=5),
    seed=st.none() | st.integers(min_value=0, max_value=99),
)
def test_every_request_says_what_it_says_alone_within_the_budget(
    alias: str,
    asked: list[tuple[str, SamplingParameters]],
    portions: list[int],
    rows: int,
    budget_rows: float | None,
    prefill_tokens: int,
    encoded_rows: int,
    seed: int | None,
) -> None:
    # given any requests, arriving in any portions, and any memory for them
    requests = numbered(asked)
    row_bytes = widest_row_bytes(alias)
    budget = None if budget_rows is None else int(budget_rows * row_bytes)
    engine = continuous(
        alias,
        rows=rows,
        cache_bytes=budget,
        prefill_tokens=prefill_tokens,
        encoded_rows=encoded_rows,
        passes=None if seed is None else lambda model: ShuffledPasses(model, seed),
    )
    taken: list[int] = []

    def look_and_go_on() -> bool:
        taken.append(engine.cache_bytes)
        return False

    # when they are generated
    results: dict[int, GenerationResult] = {}
    feed = TrickleFeed(requests, portions)
    for batch in engine.generate(feed, should_stop=look_and_go_on):
        assert batch.rows <= rows
        assert batch.row_steps <= rows * batch.steps
        assert not results.keys() & by_key([batch]).keys()
        results |= by_key([batch])
    # then each says what it says alone, and the cache was never over the budget
    assert {key: said(result) for key, result in results.items()} == {
        each.key: alone(alias, str(each.prompt), each.parameters) for each in requests
    }
    assert budget is None or max(taken) <= budget


def widest_row_bytes(alias: str) -> int:
    """Of a cache that holds the widest of PROMPTS with PARAMETERS: 2 layers of 4 heads of 8."""
    tokens = 2 * 2 * 4 * 8 * 4
    return tokens * (120 if alias != "tiny-flan" else 21 + 90)


@pytest.mark.parametrize(("cache_dtype", "head_bytes"), [("float", 8 * 4), ("int8", 8 + 4)])
def test_the_bytes_of_the_cache_decide_how_many_rows_there_are(
    cache_dtype: CacheDtype, head_bytes: int
) -> None:
    # given room for three rows of 20 tokens each, with what is spare
    room = 3 * (20 + spare_columns(20)) * 2 * 2 * 4 * head_bytes
    requests = [request(key, "a", max_new_tokens=19, eos_token_ids=()) for key in range(7)]
    for cache_bytes, rows in ((room, 3), (room - 1, 2)):
        engine = continuous(
            "tiny-gpt-neox", rows=9, cache_bytes=cache_bytes, cache_dtype=cache_dtype
        )
        assert max(batch.rows for batch in windows(engine, requests)) == rows


@pytest.mark.parametrize("alias", ALIASES)
def test_a_finished_row_makes_room_at_once(alias: str) -> None:
    # given lengths that differ, and two places
    lengths = (12, 3, 2, 4, 1, 2)
    requests = [
        request(key, PROMPTS[1], max_new_tokens=length, eos_token_ids=())
        for key, length in enumerate(lengths)
    ]
    batches = windows(continuous(alias, rows=2), requests)
    # then no place is ever empty while a prompt waits: 24 tokens in 12 steps
    assert sum(batch.steps for batch in batches) == 12
    assert sum(batch.row_steps for batch in batches) == sum(lengths)
    assert [by_key(batches)[key].completion_tokens for key in range(6)] == list(lengths)


@pytest.mark.parametrize("alias", ALIASES)
def test_memory_that_runs_out_loses_nothing(alias: str) -> None:
    # given memory that is enough to prefill four rows, and to go on with two
    requests = numbered([(prompt, PARAMETERS[2 + key % 4]) for key, prompt in enumerate(PROMPTS)])
    engine: DecodeEngine

    def on_step(_forwards: int) -> None:
        if engine._running is not None and len(engine._running.batch.rows) > 2:
            raise torch.OutOfMemoryError("no room")

    engine = continuous(alias, rows=4, encoded_rows=9, passes=lambda _model: WatchedPasses(on_step))
    batches = windows(engine, requests)
    results = by_key(batches)
    assert {key: said(result) for key, result in results.items()} == {
        each.key: alone(alias, str(each.prompt), each.parameters) for each in requests
    }
    assert sum(batch.out_of_memory_retries for batch in batches) == 1
    assert engine.row_capacity == 2


def test_a_prompt_that_fits_nowhere_fails_alone_and_shrinks_nothing() -> None:
    requests = numbered([(prompt, PARAMETERS[1]) for prompt in PROMPTS])
    longest = PROMPTS.index(max(PROMPTS, key=len))
    engine: DecodeEngine

    def on_step(_forwards: int) -> None:
        assert engine._running is not None
        rows = engine._running._in_flight()
        if any(row.key == longest for row in rows):
            raise MemoryError

    engine = continuous("tiny-gpt-neox", passes=lambda _model: WatchedPasses(on_step))
    results = by_key(windows(engine, requests))
    assert [key for key, result in results.items() if result.error is not None] == [longest]
    error = results[longest].error
    assert error is not None
    assert error.code == "out_of_memory"
    assert len(results) == len(PROMPTS)
    assert engine.row_capacity == 4


def test_an_encoder_that_does_not_fit_beside_rows_waits_until_they_are_finished() -> None:
    # given twelve prompts for four rows, so that some are encoded while others are decoded
    requests = numbered([(PROMPTS[key % 6], PARAMETERS[key % 3]) for key in range(12)])
    engine: DecodeEngine
    refused = 0

    def on_step(_forwards: int) -> None:
        nonlocal refused
        assert engine._running is not None
        if engine._running._encoding and engine._running.batch.rows:
            refused += 1
            raise MemoryError

    engine = continuous("tiny-flan", passes=lambda _model: WatchedPasses(on_step))
    results = by_key(windows(engine, requests))
    assert {key: said(result) for key, result in results.items()} == {
        each.key: alone("tiny-flan", str(each.prompt), each.parameters) for each in requests
    }
    assert refused == 1


def test_rows_that_keep_running_out_of_memory_end_with_that(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # given a batch that never fits, and a limit that nothing lowers
    def on_step(_forwards: int) -> None:
        raise MemoryError

    engine = continuous("tiny-bloom", passes=lambda _model: WatchedPasses(on_step))
    monkeypatch.setattr(engine._row_limit, "halve", lambda _rows: None)
    monkeypatch.setattr("engine.decode.loop.MOST_RECOVERIES", 3)
    results = by_key(windows(engine, numbered([("a", PARAMETERS[1])] * 6)))
    # then every prompt has its result all the same
    assert [result.error and result.error.code for result in results.values()] == [
        "out_of_memory"
    ] * 6


def test_another_error_of_the_model_is_the_callers() -> None:
    def on_step(_forwards: int) -> None:
        raise RuntimeError("a broken kernel")

    engine = continuous("tiny-bloom", passes=lambda _model: WatchedPasses(on_step))
    with pytest.raises(RuntimeError, match="a broken kernel"):
        windows(engine, [request(0, "a")])


@pytest.mark.parametrize("alias", ALIASES)
def test_rows_that_nobody_wants_any_more_are_dropped_within_a_step(alias: str) -> None:
    requests = numbered([(PROMPTS[key % 6], PARAMETERS[2]) for key in range(7)])
    feed = TrickleFeed(requests, [7])
    steps = 0

    def on_step(_forwards: int) -> None:
        nonlocal steps
        steps += 1
        if steps == 4:
            feed.unwanted |= {0, 3, 5}

    engine = continuous(alias, rows=9, passes=lambda _model: WatchedPasses(on_step))
    results = by_key(windows(engine, feed))
    assert sorted(results) == [1, 2, 4, 6]
    for key, result in results.items():
        assert said(result) == alone(alias, PROMPTS[key % 6], PARAMETERS[2])


def test_a_stop_takes_effect_before_the_next_step() -> None:
    asked = 0

    def should_stop() -> bool:
        nonlocal asked
        asked += 1
        return asked > 4

    engine = continuous("tiny-cerebras")
    requests = [
        request(0, PROMPTS[0], max_new_tokens=2, eos_token_ids=()),
        request(1, PROMPTS[3], max_new_tokens=50, eos_token_ids=()),
    ]
    batches = list(engine.generate(RequestList(requests), should_stop=should_stop))
    assert list(by_key(batches)) == [0]
    assert sum(batch.steps for batch in batches) == 4
    assert engine.cache_bytes == 0


def test_a_stop_before_the_first_step_runs_nothing() -> None:
    engine = continuous("tiny-cerebras")
    feed = RequestList([request(0, "a")])
    assert list(engine.generate(feed, should_stop=lambda: True)) == []
    assert feed.take(1)


def test_a_closed_engine_says_so() -> None:
    engine = continuous("tiny-cerebras")
    engine.close()
    with pytest.raises(RuntimeError, match="closed"):
        windows(engine, [request(0, "a")])


def test_there_is_at_least_one_row() -> None:
    with pytest.raises(ValueError, match="rows"):
        continuous("tiny-cerebras", rows=0)


def test_a_huge_feed_is_not_drained() -> None:
    feed = RequestList([request(key, "a", max_new_tokens=1) for key in range(1000)])
    batches = continuous("tiny-bloom", rows=2).generate(feed, should_stop=never)
    next(batches)
    assert len(feed.take(1000)) > 900


def test_a_prompt_that_is_too_long_has_an_error_and_the_others_go_on() -> None:
    requests = [request(0, "a " * 200), request(1, "a", max_new_tokens=2)]
    results = by_key(windows(continuous("tiny-bloom"), requests))
    error = results[0].error
    assert error is not None
    assert error.code == "prompt_too_long"
    assert results[1].error is None


def test_a_row_that_is_wider_than_the_budget_runs_alone() -> None:
    # given room for less than one row
    requests = numbered([(prompt, PARAMETERS[4]) for prompt in PROMPTS[-3:]])
    batches = windows(continuous("tiny-gpt-neox", cache_bytes=100), requests)
    assert max(batch.rows for batch in batches) == 1
    for key, result in by_key(batches).items():
        assert said(result) == alone("tiny-gpt-neox", PROMPTS[-3:][key], PARAMETERS[4])


def test_positions_end_where_gpt_2_has_none() -> None:
    # given one prompt with room for few tokens, and one that wants many
    prompts = ["a" * 120, "once"]
    requests = [
        request(key, prompt, max_new_tokens=60, eos_token_ids=())
        for key, prompt in enumerate(prompts)
    ]
    results = by_key(windows(continuous("tiny-cerebras"), requests))
    # then they run together, and neither leaves the context
    assert results[0].prompt_tokens + results[0].completion_tokens == 128
    assert results[1].completion_tokens == 60


@pytest.mark.parametrize("alias", ALIASES)
def test_times_and_windows_add_up(alias: str) -> None:
    requests = numbered([(prompt, PARAMETERS[2]) for prompt in PROMPTS])
    batches = windows(continuous(alias, rows=2), requests)
    results = by_key(batches)
    assert sum(batch.row_steps for batch in batches) == sum(
        result.completion_tokens for result in results.values()
    )
    spent = sum(batch.prefill_seconds + batch.decode_seconds for batch in batches)
    for result in results.values():
        assert result.waiting_seconds >= 0
        assert 0 < result.prefill_seconds <= spent
        assert 0 < result.decode_seconds <= spent
    assert max(result.waiting_seconds for result in results.values()) > 0
    assert all(batch.row_capacity == 2 for batch in batches)
    assert 0 < sum(batch.compute_seconds for batch in batches) <= spent


def test_a_window_is_closed_when_half_the_rows_are_finished() -> None:
    requests = [request(key, "once", max_new_tokens=2 + key, eos_token_ids=()) for key in range(8)]
    batches = windows(continuous("tiny-bloom", rows=8), requests)
    assert [len(batch.results) for batch in batches] == [4, 4]


def test_one_engine_serves_one_feed_after_another() -> None:
    engine = DecodeEngine(
        loaded("tiny-flan"), description("tiny-flan"), limits=BatchLimits(rows=3, encoded_rows=2)
    )
    for _ in range(2):
        results = by_key(windows(engine, numbered([(PROMPTS[2], PARAMETERS[4])])))
        assert said(results[0]) == alone("tiny-flan", PROMPTS[2], PARAMETERS[4])
        assert engine.cache_bytes == 0
