"""What a fault tells an engine of the memory there is; without torch, which players lack."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path


@dataclass(frozen=True, kw_only=True)
class Shortage:
    """When there is no memory.

    Attributes:
        most_rows: Whenever more rows than this are in flight; None for no such bound.
        passes: At these passes over the weights, counted from the shortage's
            beginning, or at the next one with several rows: a row that does not
            fit even alone has to fail.
    """

    most_rows: int | None = None
    passes: tuple[int, ...] = ()

    def write(self, path: Path) -> None:
        """Begin it, for the workers that look at this file."""
        # In one step: the worker looks at every pass.
        new = path.with_suffix(".new")
        new.write_text(json.dumps(asdict(self)))
        new.replace(path)
