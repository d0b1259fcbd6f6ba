"""An engine without a model: for queue benchmarks and fault tests.

It imports no torch, echoes the end of each prompt and can be told to be slow
or to kill its own process.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from engine.interface import (
    GenerationRequest,
    GenerationResult,
    LoadInterruptedError,
    LoadProgress,
    ModelDescription,
    ModelSource,
    RequestFeed,
    Window,
)

_NAP_SECONDS = 0.05


@dataclass(frozen=True, kw_only=True)
class NullBehaviour:
    """How a null engine behaves.

    Attributes:
        micro_batch_rows: Rows of a micro-batch.
        micro_batch_seconds: How long each takes.
        load_seconds: How long a load takes.
        echo_words: How many of a prompt's last words come back.
        crash_on: A prompt's text that kills the process, as running out of
            host memory does: SIGKILL, with nothing cleaned up.
    """

    micro_batch_rows: int = 64
    micro_batch_seconds: float = 0.0
    load_seconds: float = 0.0
    echo_words: int = 4
    crash_on: str | None = None


@dataclass(frozen=True, kw_only=True)
class NullEngineLoader:
    """An EngineLoader that loads nothing, in load_seconds."""

    behaviour: NullBehaviour = NullBehaviour()

    def __call__(
        self,
        source: ModelSource,
        *,
        on_progress: Callable[[LoadProgress], None],
        should_stop: Callable[[], bool],
    ) -> NullEngine:
        """Make a null engine.

        Raises:
            LoadInterruptedError: should_stop() turned true on the way.
        """
        if not _wait(self.behaviour.load_seconds, should_stop):
            raise LoadInterruptedError
        on_progress(LoadProgress(stage="ready", done=1, total=1, unit="models"))
        return NullEngine(source.alias, self.behaviour)


class NullEngine:
    """Echoes the end of each prompt; tokens are words."""

    def __init__(self, alias: str, behaviour: NullBehaviour | None = None) -> None:
        self._behaviour = behaviour or NullBehaviour()
        self._model = ModelDescription(
            alias=alias,
            device="none",
            architecture="null",
            parameter_count=0,
            weight_bytes=0,
            load_seconds=self._behaviour.load_seconds,
            context_tokens=None,
            compute_mode="null",
        )

    @property
    def model(self) -> ModelDescription:
        return self._model

    def generate(self, feed: RequestFeed, *, should_stop: Callable[[], bool]) -> Iterator[Window]:
        """Yield each micro-batch of echoes; see Engine."""
        while batch := feed.take(self._behaviour.micro_batch_rows):
            if should_stop():
                return
            self._crash_if_told(batch)
            began = time.perf_counter()
            if not _wait(self._behaviour.micro_batch_seconds, should_stop):
                return
            wanted = [request for request in batch if feed.is_wanted(request.key)]
            if wanted:
                yield self._echo(wanted, time.perf_counter() - began)

    def close(self) -> None:
        """There is nothing to free."""

    def _crash_if_told(self, batch: Sequence[GenerationRequest]) -> None:
        poison = self._behaviour.crash_on
        if poison is not None and any(_text(request) == poison for request in batch):
            os.kill(os.getpid(), signal.SIGKILL)

    def _echo(self, batch: Sequence[GenerationRequest], seconds: float) -> Window:
        results = tuple(self._echo_one(request, seconds) for request in batch)
        return Window(
            results=results,
            rows=len(batch),
            prompt_tokens=sum(result.prompt_tokens for result in results),
            completion_tokens=sum(result.completion_tokens for result in results),
            prefill_seconds=0.0,
            decode_seconds=seconds,
            steps=1,
            row_steps=len(batch),
            row_capacity=self._behaviour.micro_batch_rows,
            compute_seconds=seconds,
        )

    def _echo_one(self, request: GenerationRequest, seconds: float) -> GenerationResult:
        words = _text(request).split()
        echo = words[-self._behaviour.echo_words :]
        spoken = echo[: request.parameters.max_new_tokens]
        return GenerationResult(
            key=request.key,
            text=" ".join(spoken),
            finish_reason="length" if len(spoken) < len(echo) else "stop",
            prompt_tokens=len(words),
            completion_tokens=len(spoken),
            prefill_seconds=0.0,
            decode_seconds=seconds,
        )


def _text(request: GenerationRequest) -> str:
    if isinstance(request.prompt, str):
        return request.prompt
    return " ".join(message.content for message in request.prompt)


def _wait(seconds: float, should_stop: Callable[[], bool]) -> bool:
    """Wait, asking now and then whether to stop; False if it was."""
    deadline = time.monotonic() + seconds
    while (left := deadline - time.monotonic()) > 0:
        if should_stop():
            return False
        time.sleep(min(left, _NAP_SECONDS))
    return True
