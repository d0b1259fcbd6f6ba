"""GPU memory that runs out when a test says so, where the engine would meet it.

CI has no GPU. What torch raises there comes out of a pass over the weights, so it
is raised here, in the place of one.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch

from engine.weights.passes import StreamTotals, WeightPasses
from tests.chaos.shortage import Shortage

T = TypeVar("T")


class ScarcePasses:
    """An engine's passes, of which some run out of memory while the file is there."""

    def __init__(self, passes: WeightPasses, engine: Any, file: Path) -> None:
        self._passes = passes
        self._engine = engine
        self._file = file
        self._count = 0
        self._left: list[int] | None = None

    def together(self, forwards: Sequence[Callable[[], T]]) -> list[T]:
        shortage = self._shortage()
        if shortage is not None and self._strikes(shortage):
            raise torch.OutOfMemoryError("CUDA out of memory, says the fault suite")
        return self._passes.together(forwards)

    @property
    def totals(self) -> StreamTotals:
        return self._passes.totals

    def _shortage(self) -> Shortage | None:
        try:
            shortage = Shortage(**json.loads(self._file.read_text()))
        except FileNotFoundError:
            self._count, self._left = 0, None
            return None
        if self._left is None:
            self._left = sorted(shortage.passes)
        return shortage

    def _strikes(self, shortage: Shortage) -> bool:
        self._count += 1
        rows = len(self._engine._running._in_flight())
        if shortage.most_rows is not None and rows > shortage.most_rows:
            return True
        if rows > 1 and self._left and self._count >= self._left[0]:
            self._left.pop(0)
            return True
        return False


def make_scarce(engine: Any, file: Path) -> None:
    """Have the file say when the engine runs out of memory."""
    loaded = getattr(engine, "_loaded", None)
    if loaded is not None and not isinstance(loaded.passes, ScarcePasses):
        loaded.passes = ScarcePasses(loaded.passes, engine, file)
