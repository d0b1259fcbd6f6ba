"""An engine that does what a test wrote down, behind the real interface."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from engine.interface import (
    Engine,
    GenerationRequest,
    GenerationResult,
    LoadProgress,
    ModelDescription,
    ModelSource,
    RequestFeed,
    Window,
)
from worker.shards.held_shard import KEYS_PER_SHARD

MODEL = ModelDescription(
    alias="tiny-bloom",
    device="cpu",
    architecture="scripted",
    parameter_count=1,
    weight_bytes=1,
    load_seconds=0.0,
    context_tokens=None,
    compute_mode="llm_int8",
)


@dataclass
class ScriptedEngine:
    """Answers requests in windows of as many rows as it has.

    Attributes:
        rows: Of a window.
        before_row: Called with a row's number before it is generated; it may
            raise, stop the worker or meddle with the ledger.
        answer: The text of a request's completion; None leaves it out.
        on_close: Called when the model is freed.
        seen: The requests it was given, in all calls.
    """

    rows: int = 1
    before_row: Callable[[int], object] = lambda row: None
    answer: Callable[[GenerationRequest], str | None] = lambda request: (
        f"answer {request.key % KEYS_PER_SHARD}"
    )
    on_close: Callable[[], object] = lambda: None
    seen: list[GenerationRequest] = field(default_factory=list)
    closed: int = 0

    @property
    def model(self) -> ModelDescription:
        return MODEL

    def generate(self, feed: RequestFeed, *, should_stop: Callable[[], bool]) -> Iterator[Window]:
        row = -1
        while requests := feed.take(self.rows):
            self.seen += requests
            answers: dict[int, str] = {}
            for request in requests:
                row += 1
                self.before_row(row)
                if should_stop():
                    break
                text = self.answer(request) if feed.is_wanted(request.key) else None
                if text is not None:
                    answers[request.key] = text
            if answers:
                yield window(answers)
            if should_stop():
                return

    def close(self) -> None:
        self.closed += 1
        self.on_close()


def window(answers: dict[int, str]) -> Window:
    """A window that takes 1.25 s and ten steps, whatever it finishes."""
    results = tuple(
        GenerationResult(
            key=key,
            text=text,
            finish_reason="stop",
            prompt_tokens=3,
            completion_tokens=2,
            prefill_seconds=0.25,
            decode_seconds=1.0,
            waiting_seconds=0.5,
        )
        for key, text in answers.items()
    )
    return Window(
        results=results,
        rows=len(results),
        prompt_tokens=3 * len(results),
        completion_tokens=2 * len(results),
        prefill_seconds=0.25,
        decode_seconds=1.0,
        steps=10,
        row_steps=10 * len(results),
        row_capacity=4,
        streamed_bytes=1001,
        link_wait_seconds=0.75,
        compute_seconds=0.5,
    )


@dataclass
class ScriptedLoader:
    """Hands out one engine, or raises; counts the loads, and keeps what it was told last."""

    engine: Engine
    raises: BaseException | None = None
    before: Callable[[], object] = lambda: None
    loads: int = 0
    told: dict[str, object] = field(default_factory=dict)

    def __call__(
        self,
        source: ModelSource,
        *,
        on_progress: Callable[[LoadProgress], None],
        should_stop: Callable[[], bool],
        **told: object,
    ) -> Engine:
        self.loads += 1
        self.told = told
        self.before()
        if self.raises is not None:
            raise self.raises
        return self.engine
