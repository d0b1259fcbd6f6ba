"""What progress displays share: a bar on a terminal, and lines now and then elsewhere."""

from __future__ import annotations

import sys
from abc import ABC, abstractmethod
from types import TracebackType
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

# In a log file a line every half second would be noise.
LINE_SECONDS = 10.0


class StderrBar(ABC):
    """A context manager, since a bar must be taken down; without a terminal it has none."""

    def __init__(self) -> None:
        self._bar: tuple[Progress, TaskID] | None = None
        self._last_line_at = float("-inf")

    @abstractmethod
    def _make_bar(self) -> tuple[Progress, TaskID]:
        """The bar, not started yet, and its one task."""

    def __enter__(self) -> Self:
        if sys.stderr.isatty():
            self._bar = self._make_bar()
            self._bar[0].start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._bar is not None:
            self._bar[0].stop()
