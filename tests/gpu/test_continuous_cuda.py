"""The decode loop on a CUDA device."""

from __future__ import annotations

import pytest
import torch

from engine.cache.format import CacheDtype
from engine.decode.engine import DecodeEngine
from engine.plan.limits import BatchLimits
from tests.continuous_engines import PROMPTS, by_key, description, loaded, request, said, windows
from tests.tiny_checkpoints import ALIASES

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no CUDA device"),
]


def on_cuda(alias: str, rows: int, cache_dtype: CacheDtype = "float") -> DecodeEngine:
    model = loaded(alias)
    model.device = torch.device("cuda", 0)
    model.model.to(model.device)
    limits = BatchLimits(rows=rows, prefill_tokens=16, encoded_rows=4)
    return DecodeEngine(model, description(alias), limits=limits, cache_dtype=cache_dtype)


@pytest.mark.parametrize("cache_dtype", ["float", "int8"])
@pytest.mark.parametrize("alias", ALIASES)
def test_rows_that_come_and_go_say_what_they_say_alone(alias: str, cache_dtype: CacheDtype) -> None:
    requests = [
        request(
            key,
            PROMPTS[key % len(PROMPTS)],
            max_new_tokens=3 + key,
            temperature=(0.0, 1.1)[key % 2],
            repetition_penalty=(1.0, 1.0, 1.3)[key % 3],
            logprobs=2,
            seed=key,
        )
        for key in range(12)
    ]
    together = by_key(windows(on_cuda(alias, 4, cache_dtype), requests))
    engine = on_cuda(alias, 1, cache_dtype)
    alone = {each.key: by_key(windows(engine, [each]))[each.key] for each in requests}
    assert {key: said(result) for key, result in together.items()} == {
        key: said(result) for key, result in alone.items()
    }


def test_the_cache_is_given_back() -> None:
    engine = on_cuda("tiny-gpt-neox", 4)
    windows(engine, [request(0, "once", max_new_tokens=2)])
    before = torch.cuda.memory_allocated()
    windows(engine, [request(key, PROMPTS[5], max_new_tokens=20) for key in range(8)])
    assert torch.cuda.memory_allocated() <= before
