"""`tgp-jobs` with a worker that writes down what it begins, and that lives with odd clocks.

    python -m tests.chaos.traced_worker worker --model steady

The real command in the real processes. Five things are put in before it
starts, each asked for by a variable:

- CHAOS_TRACE: the file that every prompt goes to when an engine takes it.
- CHAOS_CLOCK_SHIFT_SECONDS: how far this process's clock is off.
- CHAOS_BUSY_SECONDS: how long it waits for a locked SQLite, which is a minute
  otherwise.
- CHAOS_POISON: a file; while it exists, the prompt it holds kills the process
  that takes it.
- CHAOS_SHORTAGE: a file; while it exists, it says when a real engine finds no
  memory.
"""

from __future__ import annotations

import datetime
import os
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from engine.interface import GenerationRequest, RequestFeed
from tests.chaos.trace import write_begun


class TracedFeed:
    """A feed of requests that notes what is taken from it."""

    def __init__(self, feed: RequestFeed) -> None:
        self._feed = feed

    def take(self, at_most: int) -> Sequence[GenerationRequest]:
        taken = self._feed.take(at_most)
        prompts = [str(request.prompt) for request in taken]
        write_begun(Path(os.environ["CHAOS_TRACE"]), prompts)
        with suppress(FileNotFoundError):
            if Path(os.environ["CHAOS_POISON"]).read_text() in prompts:
                os.kill(os.getpid(), signal.SIGKILL)
        return taken

    def __getattr__(self, name: str) -> Any:
        return getattr(self._feed, name)


class TracedEngine:
    """Any engine, with its feeds traced."""

    def __init__(self, engine: Any) -> None:
        self._engine = engine

    def generate(self, feed: RequestFeed, **options: Any) -> Iterator[Any]:
        batches: Iterator[Any] = self._engine.generate(TracedFeed(feed), **options)
        return batches

    def __getattr__(self, name: str) -> Any:
        return getattr(self._engine, name)


def trace_engines() -> None:
    """Every engine that a worker gets from its host writes the trace."""
    import worker.models.engine_host

    host_class: Any = worker.models.engine_host.EngineHost
    engine_for = host_class.engine_for

    def traced(host: Any, *arguments: Any, **options: Any) -> TracedEngine:
        engine = engine_for(host, *arguments, **options)
        if "torch" in sys.modules:
            from tests.chaos.scarce_memory import make_scarce

            make_scarce(engine, Path(os.environ["CHAOS_SHORTAGE"]))
        return TracedEngine(engine)

    host_class.engine_for = traced


def shift_clock(seconds: float) -> None:
    """Make this process and its forks read another time of day.

    SQLite asks the system itself; it runs on one machine, which has one clock.
    """
    true_time = time.time
    true_datetime: Any = datetime.datetime
    offset = datetime.timedelta(seconds=seconds)

    class ShiftedDateTime(true_datetime):  # type: ignore[misc]
        @classmethod
        def now(cls, tz: datetime.tzinfo | None = None) -> Any:
            return true_datetime.now(tz) + offset

        @classmethod
        def utcnow(cls) -> Any:
            return true_datetime.now(datetime.UTC).replace(tzinfo=None) + offset

    time.time = lambda: true_time() + seconds
    datetime.datetime = ShiftedDateTime  # type: ignore[misc]


def main() -> None:
    if shift := float(os.environ.get("CHAOS_CLOCK_SHIFT_SECONDS", "0")):
        shift_clock(shift)
    if busy := os.environ.get("CHAOS_BUSY_SECONDS"):
        import jobs.database

        jobs.database.BUSY_TIMEOUT_SECONDS = float(busy)
    trace_engines()
    from cli.main import main as tgp_jobs

    tgp_jobs()


if __name__ == "__main__":
    main()
