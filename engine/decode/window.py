"""Counts the steps between two windows of results."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

from engine.interface import GenerationResult, Window
from engine.weights.passes import StreamTotals, WeightPasses

# Results are told of at least this often, if there are any.
WINDOW_SECONDS = 1.0


@dataclass(kw_only=True)
class WindowCounter:
    """Counts from one micro-batch to the next."""

    passes: WeightPasses
    results: list[GenerationResult] = field(default_factory=list)
    out_of_memory_retries: int = 0
    _rows: int = 0
    _steps: int = 0
    _row_steps: int = 0
    _prefill_seconds: float = 0.0
    _decode_seconds: float = 0.0
    _model_seconds: float = 0.0
    _started: float = field(default_factory=time.perf_counter)
    _streamed: StreamTotals = field(init=False)

    def __post_init__(self) -> None:
        self._streamed = self.passes.totals

    def is_due(self, row_capacity: int) -> bool:
        """Whether there is something to tell, and enough of it or for long enough."""
        if not self.results:
            return False
        waited = time.perf_counter() - self._started
        return waited >= WINDOW_SECONDS or 2 * len(self.results) >= row_capacity

    def count_step(
        self, *, rows: int, prompt_share: float, seconds: float, model_seconds: float
    ) -> None:
        """A step that gave so many rows a token.

        Args:
            rows: Rows that got a token; 0 where only prompts were read.
            prompt_share: Share of prompt tokens among the tokens that went through the model.
            seconds: Duration of the step; divided into prefill and decode by that share.
            model_seconds: Part of the duration that was spent in the model.
        """
        self._rows = max(self._rows, rows)
        self._steps += rows > 0
        self._row_steps += rows
        self._prefill_seconds += seconds * prompt_share
        self._decode_seconds += seconds * (1 - prompt_share)
        self._model_seconds += model_seconds

    def close(self, row_capacity: int) -> Window:
        """The micro-batch of this window."""
        streamed = self.passes.totals.since(self._streamed)
        return Window(
            results=tuple(self.results),
            rows=self._rows,
            prompt_tokens=sum(result.prompt_tokens for result in self.results),
            completion_tokens=sum(result.completion_tokens for result in self.results),
            prefill_seconds=self._prefill_seconds,
            decode_seconds=self._decode_seconds,
            out_of_memory_retries=self.out_of_memory_retries,
            steps=self._steps,
            row_steps=self._row_steps,
            row_capacity=row_capacity,
            streamed_bytes=streamed.streamed_bytes,
            link_wait_seconds=streamed.link_wait_seconds,
            compute_seconds=max(0.0, self._model_seconds - streamed.link_wait_seconds),
        )
