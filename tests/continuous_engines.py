"""What tests of the decode loop share: tiny float32 models, and what each request says alone.

float32 and not int8, because only then is a row's output a matter of the row alone.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from functools import cache
from random import Random
from typing import Any, TypeVar

import torch
from greenlet import getcurrent, greenlet

from engine.cache.format import CacheDtype
from engine.decode.engine import DecodeEngine
from engine.interface import (
    Engine,
    GenerationRequest,
    GenerationResult,
    ModelDescription,
    RequestFeed,
    RequestList,
    SamplingParameters,
    Window,
)
from engine.model.loaded import Int8Model
from engine.plan.limits import BatchLimits
from engine.weights.passes import StreamTotals, WeightPasses
from tests.oracle import Said, said_alone
from tests.tiny_checkpoints import tiny_model, tiny_tokenizer

T = TypeVar("T")

CONTEXT_TOKENS = 128
PROMPTS = (
    "a",
    "once",
    "the queue holds",
    "a model that fits the card runs",
    "every prompt is written to the database before a message is sent",
    "the worker takes one shard at a time, and then another, and then one more of them",
)


def never() -> bool:
    return False


def loaded(alias: str) -> Int8Model:
    """A random tiny model, in float32."""
    tokenizer = tiny_tokenizer(has_padding_token=alias != "tiny-cerebras")
    return Int8Model(model=tiny_model(alias), tokenizer=tokenizer, device=torch.device("cpu"))


def description(alias: str, context_tokens: int | None = CONTEXT_TOKENS) -> ModelDescription:
    return ModelDescription(
        alias=alias,
        device="cpu",
        architecture=alias,
        parameter_count=0,
        weight_bytes=0,
        load_seconds=0.0,
        context_tokens=context_tokens,
        compute_mode="w8a16",
    )


def continuous(
    alias: str,
    *,
    rows: int = 4,
    cache_bytes: int | None = None,
    prefill_tokens: int = 64,
    encoded_rows: int = 3,
    cache_dtype: CacheDtype = "float",
    passes: Callable[[Any], WeightPasses] | None = None,
) -> DecodeEngine:
    """Our engine; passes makes what runs the model's forward passes."""
    model = loaded(alias)
    if passes is not None:
        model.passes = passes(model.model)
    limits = BatchLimits(
        rows=rows,
        cache_bytes=cache_bytes,
        prefill_tokens=prefill_tokens,
        encoded_rows=encoded_rows,
    )
    return DecodeEngine(model, description(alias), limits=limits, cache_dtype=cache_dtype)


def request(key: int, prompt: str, **parameters: Any) -> GenerationRequest:
    return GenerationRequest(key=key, prompt=prompt, parameters=SamplingParameters(**parameters))


def windows(engine: Engine, feed: RequestFeed | Sequence[GenerationRequest]) -> list[Window]:
    source = RequestList(feed) if isinstance(feed, (list, tuple)) else feed
    return list(engine.generate(source, should_stop=never))  # type: ignore[arg-type]


def by_key(batches: Iterable[Window]) -> dict[int, GenerationResult]:
    results = [result for batch in batches for result in batch.results]
    assert len({result.key for result in results}) == len(results)
    return {result.key: result for result in results}


def said(result: GenerationResult) -> Said:
    return result.text, result.finish_reason, result.completion_tokens


@cache
def _stock_model(alias: str) -> Any:
    return loaded(alias)


@cache
def alone(alias: str, prompt: str, parameters: SamplingParameters) -> Said:
    """What a request says by itself, from transformers' own generate()."""
    model = _stock_model(alias)
    context = CONTEXT_TOKENS
    if not model.model.config.is_encoder_decoder:
        context -= len(model.tokenizer(prompt)["input_ids"])
    fitting = replace(parameters, max_new_tokens=min(parameters.max_new_tokens, context))
    asked = GenerationRequest(key=0, prompt=prompt, parameters=fitting)
    return said_alone(model.model, model.tokenizer, asked)


class TrickleFeed:
    """A feed that never gives more than it feels like, and may stop wanting some."""

    def __init__(self, requests: Sequence[GenerationRequest], portions: Sequence[int]) -> None:
        self._waiting = deque(requests)
        self._portions = deque(portions)
        self.unwanted: set[int] = set()

    def take(self, at_most: int) -> Sequence[GenerationRequest]:
        portion = self._portions.popleft() if self._portions else at_most
        count = min(portion, at_most, len(self._waiting))
        return [self._waiting.popleft() for _ in range(count)]

    def is_wanted(self, key: int) -> bool:
        return key not in self.unwanted


class WatchedPasses:
    """Runs passes one after another, and tells of each step before it runs."""

    def __init__(self, on_step: Callable[[int], None]) -> None:
        self._on_step = on_step

    def together(self, forwards: Sequence[Callable[[], T]]) -> list[T]:
        self._on_step(len(forwards))
        return [forward() for forward in forwards]

    @property
    def totals(self) -> StreamTotals:
        return StreamTotals()


class ShuffledPasses:
    """Runs passes side by side: before each layer, any of them may be the one that goes on."""

    def __init__(self, model: Any, seed: int) -> None:
        self._random = Random(seed)
        self._scheduler: Any = None
        for name, module in model.named_modules():
            if name.split(".")[-1].isdigit():
                module.register_forward_pre_hook(self._wait)

    def together(self, forwards: Sequence[Callable[[], T]]) -> list[T]:
        self._scheduler = getcurrent()
        runners = [greenlet(forward) for forward in forwards]
        results: dict[int, T] = {}
        left = list(range(len(runners)))
        while left:
            chosen = self._random.choice(left)
            value = runners[chosen].switch()
            if runners[chosen].dead:
                results[chosen] = value
                left.remove(chosen)
        self._scheduler = None
        return [results[place] for place in range(len(runners))]

    @property
    def totals(self) -> StreamTotals:
        return StreamTotals()

    def _wait(self, _module: object, _inputs: object) -> None:
        if self._scheduler is not None:
            self._scheduler.switch()
