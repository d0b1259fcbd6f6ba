"""Celery's prefork pool, which notices a dead child at once."""

from __future__ import annotations

from typing import Any

from celery.concurrency.asynpool import AsynPool
from celery.concurrency.prefork import TaskPool

# The kernel closes a dying process's pipes a moment before its exit code can be had.
EXIT_CODE_SECONDS = 0.1


class AttentivePool(AsynPool):  # type: ignore[misc]
    """Looks again a moment after a child's pipe was closed.

    Celery looks in that very moment, often finds no exit code yet, and then
    not before its next round, up to five seconds later: until then the worker
    is without a child, and holds a message that nobody works on.
    """

    def _event_process_exit(self, hub: Any, process: Any) -> None:
        super()._event_process_exit(hub, process)
        hub.call_later(EXIT_CODE_SECONDS, self.maintain_pool)


class AttentiveTaskPool(TaskPool):  # type: ignore[misc]
    """What `worker_pool` names."""

    Pool = AttentivePool
