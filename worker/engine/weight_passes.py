"""One pass over a model's weights, shared by everything that is computed in it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class StreamTotals:
    """What streaming took since the model was loaded."""

    streamed_bytes: int = 0
    link_wait_seconds: float = 0.0

    def since(self, earlier: StreamTotals) -> StreamTotals:
        """What was added since then."""
        return StreamTotals(
            streamed_bytes=self.streamed_bytes - earlier.streamed_bytes,
            link_wait_seconds=self.link_wait_seconds - earlier.link_wait_seconds,
        )


class WeightPasses(Protocol):
    """Runs forward passes of one model."""

    def together(self, forwards: Sequence[Callable[[], T]]) -> list[T]:
        """Run forward passes so that each streamed block is fetched once for them all.

        They enter the same part of the model (encoder, or decoder) each once,
        and no other pass may run meanwhile. An exception of one ends them all
        and is raised; the next call starts afresh.

        Args:
            forwards: Each calls the model, or its encoder, once.

        Returns:
            What each returned, in their order.
        """
        ...

    @property
    def totals(self) -> StreamTotals: ...


class ResidentPasses:
    """For a model that is on its device as a whole: there is nothing to fetch."""

    def together(self, forwards: Sequence[Callable[[], T]]) -> list[T]:
        return [forward() for forward in forwards]

    @property
    def totals(self) -> StreamTotals:
        return StreamTotals()
