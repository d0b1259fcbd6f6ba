"""An engine that does what a test wrote down, behind the real interface."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from worker.engine.engine import (
    Engine,
    GenerationRequest,
    GenerationResult,
    LoadedModel,
    LoadProgress,
    MicroBatch,
    ModelSource,
    RequestFeed,
)

MODEL = LoadedModel(
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
    """Answers each request alone, in a micro-batch of one row.

    Attributes:
        before_row: Called with a row's number before it is generated; it may
            raise, stop the worker or meddle with the ledger.
        answer: The text of a request's completion; None leaves it out.
        on_close: Called when the model is freed.
        seen: The requests it was given, in all calls.
    """

    before_row: Callable[[int], object] = lambda row: None
    answer: Callable[[GenerationRequest], str | None] = lambda request: f"answer {request.key}"
    on_close: Callable[[], object] = lambda: None
    seen: list[GenerationRequest] = field(default_factory=list)
    closed: int = 0

    @property
    def model(self) -> LoadedModel:
        return MODEL

    def generate(
        self, feed: RequestFeed, *, should_stop: Callable[[], bool]
    ) -> Iterator[MicroBatch]:
        row = -1
        while requests := feed.take(1):
            (request,) = requests
            self.seen.append(request)
            row += 1
            self.before_row(row)
            if should_stop():
                return
            text = self.answer(request)
            if text is not None:
                yield one_row(request.key, text)

    def close(self) -> None:
        self.closed += 1
        self.on_close()


def one_row(key: int, text: str) -> MicroBatch:
    result = GenerationResult(
        key=key,
        text=text,
        finish_reason="stop",
        prompt_tokens=3,
        completion_tokens=2,
        prefill_seconds=0.25,
        decode_seconds=1.0,
    )
    return MicroBatch(
        results=(result,),
        rows=1,
        prompt_tokens=3,
        completion_tokens=2,
        prefill_seconds=0.25,
        decode_seconds=1.0,
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
