"""The Celery task: a shard's id in, nothing out."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from celery import Celery

from jobs.dispatch import TASK_NAME
from worker.log import get_logger
from worker.shards.held_shard import Outcome

LARGEST_SHARD_ID = 2**31 - 1  # of an Integer column on Postgres


def register_task(app: Celery, run: Callable[[int], Outcome]) -> None:
    """Give the application its one task.

    Args:
        app: The worker's application.
        run: Runs a shard in this process.
    """

    @app.task(  # type: ignore[untyped-decorator]
        name=TASK_NAME,
        # Acknowledged when it is over, and handed to another child if this
        # one dies; the ledger counts the deaths and caps them.
        acks_late=True,
        reject_on_worker_lost=True,
        ignore_result=True,
    )
    def run_shard(shard_id: Any = None, /, *_extra: Any, **_unknown: Any) -> None:
        if not _is_shard_id(shard_id) or _extra or _unknown:
            get_logger().error("message_dropped", reason="it does not hold exactly a shard's id")
            return
        run(shard_id)


def _is_shard_id(value: Any) -> bool:
    # A database refuses a number that its column cannot hold, with an exception
    # that would look like a crash of the shard's.
    return type(value) is int and 0 < value <= LARGEST_SHARD_ID
