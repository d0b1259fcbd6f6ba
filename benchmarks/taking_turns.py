"""Two things that are measured side by side, a step of the one and then one of the other.

Whatever else the machine does then strikes both alike, which whole runs one
after the other do not see to.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from threading import Semaphore
from typing import Any

# Does all its steps, and calls what it is given between any two.
Steps = Callable[[Callable[[], None]], Any]


@dataclass(frozen=True)
class Cost:
    """Of all steps of one side, in CPU seconds of this process and in seconds."""

    cpu_seconds: float
    seconds: float


def take_turns(first: Steps, second: Steps) -> tuple[Cost, Cost]:
    """Run both to their ends, on a thread each, of which one runs at a time."""
    sides = (_Side(first), _Side(second))
    with ThreadPoolExecutor(len(sides)) as threads:
        running = [
            threads.submit(side.run, other) for side, other in zip(sides, sides[::-1], strict=True)
        ]
        sides[0].has_turn.release()
        for each in running:
            each.result()
    costs = [Cost(side.cpu_seconds, side.seconds) for side in sides]
    return costs[0], costs[1]


class _Side:
    """One of the two; its clocks stand still while it is the other's turn."""

    def __init__(self, steps: Steps) -> None:
        self.has_turn = Semaphore(0)
        self.is_done = False
        self.cpu_seconds = 0.0
        self.seconds = 0.0
        self._steps = steps

    def run(self, other: _Side) -> None:
        self._wait()
        try:
            self._steps(lambda: self._pass_on(other))
        finally:
            self._stop()
            self.is_done = True
            other.has_turn.release()

    def _pass_on(self, other: _Side) -> None:
        if not other.is_done:
            self._stop()
            other.has_turn.release()
            self._wait()

    def _wait(self) -> None:
        self.has_turn.acquire()
        self._cpu_started, self._started = time.process_time(), time.perf_counter()

    def _stop(self) -> None:
        self.cpu_seconds += time.process_time() - self._cpu_started
        self.seconds += time.perf_counter() - self._started
