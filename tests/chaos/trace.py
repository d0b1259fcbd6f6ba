"""What workers began to generate and when, in a file that they all append to.

The ledger keeps what was finished. Work that a fault threw away shows only
here: a prompt that stands in the trace twice was begun twice.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, kw_only=True)
class Begun:
    """A prompt that an engine took.

    Attributes:
        at: When, on the machine's monotonic clock, which all processes share.
        process: The worker's child that took it.
        prompt: Its text.
    """

    at: float
    process: int
    prompt: str


def write_begun(path: Path, prompts: Iterable[str]) -> None:
    """Append prompts that an engine takes now, in one write, so that no two processes mix."""
    at, process = time.monotonic(), os.getpid()
    lines = [json.dumps({"at": at, "process": process, "prompt": prompt}) for prompt in prompts]
    if not lines:
        return
    with path.open("ab", buffering=0) as file:
        file.write(("\n".join(lines) + "\n").encode())


class Trace:
    """The trace from one moment on."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._start = path.stat().st_size if path.exists() else 0

    def read(self) -> list[Begun]:
        """What was begun since; a line that is being written is left out."""
        whole, _, _ = self._written().rpartition(b"\n")
        return [Begun(**json.loads(line)) for line in whole.splitlines()]

    def count(self) -> int:
        """How many prompts were begun since, for those who ask often."""
        return self._written().count(b"\n")

    def _written(self) -> bytes:
        if not self._path.exists():
            return b""
        with self._path.open("rb") as file:
            file.seek(self._start)
            return file.read()
