"""The null engine keeps the engine's promises without a model."""

from __future__ import annotations

import multiprocessing
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from engine.interface import (
    ChatMessage,
    Engine,
    EngineLoader,
    GenerationRequest,
    LoadInterruptedError,
    LoadProgress,
    ModelSource,
    RequestList,
    SamplingParameters,
)
from engine.null import NullBehaviour, NullEngine, NullEngineLoader

SOURCE = ModelSource(alias="null", hub_id="none/none")


def never() -> bool:
    return False


def requests(count: int) -> list[GenerationRequest]:
    return [GenerationRequest(key=key, prompt=f"say the number {key}") for key in range(count)]


def test_every_request_comes_back_once_with_an_echo() -> None:
    engine: Engine = NullEngine("null", NullBehaviour(micro_batch_rows=3, echo_words=2))
    batches = list(engine.generate(RequestList(requests(7)), should_stop=never))
    results = [result for batch in batches for result in batch.results]
    assert [batch.rows for batch in batches] == [3, 3, 1]
    assert [(result.key, result.text) for result in results] == [
        (key, f"number {key}") for key in range(7)
    ]
    assert all(result.prompt_tokens == 4 and result.completion_tokens == 2 for result in results)


def test_max_new_tokens_ends_an_echo_with_length() -> None:
    request = GenerationRequest(
        key=0, prompt="a b c d", parameters=SamplingParameters(max_new_tokens=1)
    )
    (batch,) = NullEngine("null").generate(RequestList([request]), should_stop=never)
    assert (batch.results[0].text, batch.results[0].finish_reason) == ("a", "length")


def test_a_chat_is_echoed_too() -> None:
    request = GenerationRequest(key=0, prompt=(ChatMessage(role="user", content="hello there"),))
    (batch,) = NullEngine("null").generate(RequestList([request]), should_stop=never)
    assert batch.results[0].text == "hello there"


def test_a_row_that_is_not_wanted_any_more_has_no_result() -> None:
    class Feed(RequestList):
        def is_wanted(self, key: int) -> bool:
            return key in (1, 3)

    engine = NullEngine("null", NullBehaviour(micro_batch_rows=2))
    batches = list(engine.generate(Feed(requests(6)), should_stop=never))
    assert [[result.key for result in batch.results] for batch in batches] == [[1], [3]]


def test_a_window_tells_of_its_one_step() -> None:
    engine = NullEngine("null", NullBehaviour(micro_batch_rows=4))
    (window,) = engine.generate(RequestList(requests(3)), should_stop=never)
    assert (window.steps, window.row_steps, window.row_capacity) == (1, 3, 4)


def test_should_stop_leaves_the_rest_out() -> None:
    answers = iter([False, True])
    engine = NullEngine("null", NullBehaviour(micro_batch_rows=2))
    batches = list(engine.generate(RequestList(requests(6)), should_stop=lambda: next(answers)))
    assert [result.key for batch in batches for result in batch.results] == [0, 1]


def test_a_slow_batch_is_interrupted() -> None:
    answers = iter([False, False, True])
    engine = NullEngine("null", NullBehaviour(micro_batch_seconds=60))
    assert list(engine.generate(RequestList(requests(1)), should_stop=lambda: next(answers))) == []


def test_a_load_reports_that_it_is_ready() -> None:
    seen: list[LoadProgress] = []
    loader: EngineLoader = NullEngineLoader()
    engine = loader(SOURCE, on_progress=seen.append, should_stop=never)
    assert engine.model.compute_mode == "null"
    assert [progress.stage for progress in seen] == ["ready"]


def test_a_slow_load_is_interrupted() -> None:
    loader = NullEngineLoader(behaviour=NullBehaviour(load_seconds=60))
    with pytest.raises(LoadInterruptedError):
        loader(SOURCE, on_progress=lambda _: None, should_stop=lambda: True)


def _run_poisoned() -> None:
    engine = NullEngine("null", NullBehaviour(crash_on="say the number 1"))
    list(engine.generate(RequestList(requests(3)), should_stop=never))


def test_the_poison_prompt_kills_the_process() -> None:
    process = multiprocessing.get_context("spawn").Process(target=_run_poisoned)
    process.start()
    process.join(60)
    assert process.exitcode == -signal.SIGKILL


def test_it_needs_no_torch() -> None:
    program = (
        "import sys, engine.null; "
        "sys.exit(any(name in sys.modules for name in ('torch', 'transformers')))"
    )
    root = Path(__file__).parents[3]
    assert subprocess.run([sys.executable, "-c", program], cwd=root, check=False).returncode == 0
