"""The order in which a worker looks at its queues: it stays with one model.

A swap of models costs minutes, so the queue last used stays in front until it
is empty, or until its time is over while others wait.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable


class StickyCycle:
    """A queue order for kombu's Redis transport (its `queue_order_strategy`).

    The transport asks `consume` before each blocking read of all queues, in
    that order, and tells `rotate` which queue had a message. It reads the
    priorities' lists in front of the order, so priorities win over stickiness.

    Args:
        quantum_seconds: How long a queue may stay in front while it has messages.
        clock: Seconds, monotonic.
    """

    def __init__(
        self, quantum_seconds: float = 900.0, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._quantum_seconds = quantum_seconds
        self._clock = clock
        self._queues: list[str] = []
        self._front: str | None = None
        self._front_since = 0.0

    def update(self, queues: Iterable[str]) -> None:
        """The queues are these now; known ones keep their order."""
        wanted = list(queues)
        kept = [queue for queue in self._queues if queue in wanted]
        self._queues = kept + [queue for queue in wanted if queue not in kept]
        if self._front not in self._queues:
            self._front = None

    def consume(self, count: int) -> list[str]:
        """The first count queues in the order to read them."""
        if self._front is not None and self._time_is_over():
            # To the back, not out: if the others are empty it is read again,
            # and a new quantum begins.
            self._queues.remove(self._front)
            self._queues.append(self._front)
            self._front = None
        return self._queues[:count]

    def rotate(self, used: str) -> None:
        """A message came from this queue: it goes to the front."""
        if used == self._front or used not in self._queues:
            return
        self._front, self._front_since = used, self._clock()
        self._queues.remove(used)
        self._queues.insert(0, used)

    def _time_is_over(self) -> bool:
        return self._clock() - self._front_since >= self._quantum_seconds
