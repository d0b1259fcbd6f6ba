"""Micro-batches, memory and stopping, on a tiny float32 model.

float32 and not int8, because bitsandbytes' outlier columns are those of the
whole batch: only without them is a row's output a matter of the row alone.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch

from engine.decode.out_of_memory import is_out_of_memory
from engine.decode.static_engine import TransformersEngine
from engine.interface import (
    GenerationRequest,
    GenerationResult,
    ModelDescription,
    RequestList,
    SamplingParameters,
    Window,
)
from engine.model.loaded import Int8Model
from tests.tiny_checkpoints import ALIASES, tiny_model, tiny_tokenizer

PROMPTS = (
    "the queue holds shards",
    "a",
    "every prompt is written to the database before a message is sent",
    "a model that fits",
    "the worker takes one shard at a time, and then another",
    "once",
)


def never() -> bool:
    return False


def make_engine(
    alias: str = "tiny-cerebras",
    *,
    rows: int = 8,
    context_tokens: int | None = 128,
    fails: Callable[[int], Exception | None] = lambda rows: None,
) -> TransformersEngine:
    """An engine whose model call first raises fails(rows), where that gives one."""
    model = tiny_model(alias)
    stock_generate = model.generate

    def run_model(**inputs: Any) -> Any:
        error = fails(inputs["input_ids"].shape[0])
        if error is not None:
            raise error
        return stock_generate(**inputs)

    description = ModelDescription(
        alias=alias,
        device="cpu",
        architecture=type(model).__name__,
        parameter_count=0,
        weight_bytes=0,
        load_seconds=0.0,
        context_tokens=context_tokens,
        compute_mode="llm_int8",
    )
    tokenizer = tiny_tokenizer(has_padding_token=alias != "tiny-cerebras")
    loaded = Int8Model(model=model, tokenizer=tokenizer, device=torch.device("cpu"))
    return TransformersEngine(loaded, description, micro_batch_rows=rows, run_model=run_model)


def requests(parameters: SamplingParameters | None = None) -> list[GenerationRequest]:
    chosen = parameters or SamplingParameters(max_new_tokens=6)
    return [
        GenerationRequest(key=key, prompt=prompt, parameters=chosen)
        for key, prompt in enumerate(PROMPTS)
    ]


def by_key(batches: list[Window]) -> dict[int, GenerationResult]:
    results = [result for batch in batches for result in batch.results]
    assert len({result.key for result in results}) == len(results)
    return {result.key: result for result in results}


def texts(batches: list[Window]) -> dict[int, str | None]:
    return {key: result.text for key, result in sorted(by_key(batches).items())}


@pytest.mark.parametrize("alias", ALIASES)
def test_a_row_says_the_same_alone_and_in_any_batch(alias: str) -> None:
    mixed = [
        GenerationRequest(
            key=key,
            prompt=prompt,
            parameters=SamplingParameters(
                max_new_tokens=4 + key,
                min_new_tokens=key % 3,
                temperature=(0.0, 0.9, 1.4)[key % 3],
                top_k=(0, 12)[key % 2],
                repetition_penalty=(1.0, 1.3)[key % 2],
                seed=key,
            ),
        )
        for key, prompt in enumerate(PROMPTS)
    ]
    together = list(make_engine(alias, rows=8).generate(RequestList(mixed), should_stop=never))
    alone = list(make_engine(alias, rows=1).generate(RequestList(mixed), should_stop=never))
    assert texts(together) == texts(alone)
    assert [batch.rows for batch in together] == [6]
    assert all(
        result.completion_tokens <= 4 + key and result.error is None
        for key, result in by_key(together).items()
    )


def test_a_batch_that_does_not_fit_is_halved_and_the_size_is_kept() -> None:
    engine = make_engine(
        rows=6, fails=lambda rows: torch.OutOfMemoryError("no room") if rows > 2 else None
    )
    batches = list(engine.generate(RequestList(requests()), should_stop=never))
    assert texts(batches) == texts(
        list(make_engine().generate(RequestList(requests()), should_stop=never))
    )
    # 6 -> 3 -> 2: halves round up, so that a size that fits is not passed over
    assert [batch.rows for batch in batches] == [2, 2, 2]
    assert [batch.out_of_memory_retries for batch in batches] == [2, 0, 0]
    assert engine.micro_batch_rows == 2


def test_a_prompt_that_fits_nowhere_fails_alone_and_shrinks_nothing() -> None:
    longest = PROMPTS.index(max(PROMPTS, key=len))
    model_calls: list[int] = []

    def fails(rows: int) -> Exception | None:
        model_calls.append(rows)
        # the longest prompt comes first: it is in every batch until it has failed
        return MemoryError() if model_calls in ([4], [4, 2], [4, 2, 1]) else None

    engine = make_engine(rows=4, fails=fails)
    batches = list(engine.generate(RequestList(requests()), should_stop=never))
    results = by_key(batches)
    assert len(results) == len(PROMPTS)
    error = results[longest].error
    assert error is not None
    assert error.code == "out_of_memory"
    assert batches[0].out_of_memory_retries == 2
    assert model_calls == [4, 2, 1, 4, 1]
    assert sum(result.error is not None for result in results.values()) == 1


def test_another_error_of_the_model_is_the_callers() -> None:
    engine = make_engine(fails=lambda rows: RuntimeError("a broken kernel"))
    with pytest.raises(RuntimeError, match="a broken kernel"):
        list(engine.generate(RequestList(requests()), should_stop=never))


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (torch.OutOfMemoryError("CUDA out of memory"), True),
        (MemoryError(), True),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory"), True),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling"), True),
        (RuntimeError("shapes cannot be multiplied"), False),
    ],
)
def test_what_counts_as_out_of_memory(error: Exception, expected: bool) -> None:
    assert is_out_of_memory(error) is expected


def test_should_stop_returns_the_finished_rows_only() -> None:
    asked = 0

    def should_stop() -> bool:
        nonlocal asked
        asked += 1
        return asked > 4

    short, long = SamplingParameters(max_new_tokens=2), SamplingParameters(max_new_tokens=50)
    mixed = [
        GenerationRequest(key=0, prompt=PROMPTS[0], parameters=short),
        GenerationRequest(
            key=1,
            prompt=PROMPTS[3],
            parameters=SamplingParameters(max_new_tokens=50, min_new_tokens=50),
        ),
        GenerationRequest(key=2, prompt=PROMPTS[4], parameters=long),
    ]
    batches = list(make_engine().generate(RequestList(mixed), should_stop=should_stop))
    assert 0 in by_key(batches)
    assert 1 not in by_key(batches)
    assert asked == 5


def test_a_stop_before_the_first_batch_runs_nothing() -> None:
    assert list(make_engine().generate(RequestList(requests()), should_stop=lambda: True)) == []


def test_rows_near_the_end_of_the_context_do_not_push_others_past_it() -> None:
    # given one prompt with room for 8 tokens and one that wants 60
    parameters = SamplingParameters(max_new_tokens=60, min_new_tokens=60)
    prompts = ["a" * 120, "once"]
    pair = [
        GenerationRequest(key=key, prompt=prompt, parameters=parameters)
        for key, prompt in enumerate(prompts)
    ]
    batches = list(make_engine(context_tokens=128).generate(RequestList(pair), should_stop=never))
    # then they run apart, because GPT-2 has no 129th position
    assert [batch.rows for batch in batches] == [1, 1]
    results = by_key(batches)
    assert results[0].prompt_tokens + results[0].completion_tokens == 128
    assert results[0].finish_reason == "length"
    assert results[1].completion_tokens == 60


def test_batches_go_from_the_longest_prompt_to_the_shortest() -> None:
    batches = list(make_engine(rows=2).generate(RequestList(requests()), should_stop=never))
    longest = [max(result.prompt_tokens for result in batch.results) for batch in batches]
    assert longest == sorted(longest, reverse=True)
    assert [batch.rows for batch in batches] == [2, 2, 2]


def test_each_row_ends_at_its_own_end_tokens() -> None:
    # given one row that nothing may end, and one that ends with a token it says
    prompt, limits = PROMPTS[3], SamplingParameters(max_new_tokens=12)
    free = replace(limits, eos_token_ids=())
    said = by_key(list(make_engine().generate(RequestList(asked(prompt, free)), should_stop=never)))
    ids = tiny_tokenizer()(prompt, return_tensors="pt")["input_ids"]
    tokens = tiny_model("tiny-cerebras").generate(
        ids, max_new_tokens=12, do_sample=False, eos_token_id=None, pad_token_id=1
    )
    third = int(tokens[0, ids.shape[1] + 2])
    # when they run together with one that says nothing of it
    ends = replace(limits, eos_token_ids=(third,))
    results = by_key(
        list(make_engine().generate(RequestList(asked(prompt, free, ends)), should_stop=never))
    )
    # then each ends where it should
    assert (results[0].completion_tokens, results[0].finish_reason) == (12, "length")
    assert results[1].finish_reason == "stop"
    assert results[1].completion_tokens <= 3
    assert (said[0].text or "").startswith(results[1].text or "")


def asked(prompt: str, *parameters: SamplingParameters) -> list[GenerationRequest]:
    return [
        GenerationRequest(key=key, prompt=prompt, parameters=each)
        for key, each in enumerate(parameters)
    ]


def test_a_closed_engine_says_so() -> None:
    engine = make_engine()
    engine.close()
    with pytest.raises(RuntimeError, match="closed"):
        list(engine.generate(RequestList(requests()), should_stop=never))


def test_a_micro_batch_has_at_least_one_row() -> None:
    with pytest.raises(ValueError, match="micro_batch_rows"):
        make_engine(rows=0)
