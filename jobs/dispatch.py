"""The only place that sends messages: «shard N may be run».

The message is a doorbell. All state is in the ledger, so a message that is
lost, late or delivered twice costs time at most.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from jobs.database import Database
from jobs.errors import QueueUnavailableError
from jobs.settings import Settings, redact_url
from jobs.store import publishing
from jobs.store.records import PublishableShard

if TYPE_CHECKING:
    from celery import Celery

TASK_NAME = "tgp.run_shard"
# On Redis the lowest number is served first. Each number is its own list in
# Redis, checked in this order before the order of the queues.
PRIORITY_NUMBERS = {"high": 0, "normal": 5, "low": 9}
# Far above any shard: leases and the sweeper recover lost work, not Redis,
# which would otherwise hand a long shard to a second worker.
VISIBILITY_TIMEOUT_SECONDS = 24 * 3600
CONNECT_TIMEOUT_SECONDS = 5.0


def queue_name(model: str) -> str:
    """One queue per model, so that a queue's length is that model's load."""
    return f"tgp.{model}"


def transport_options() -> dict[str, Any]:
    """What kombu's Redis transport is told, the same for clients and workers."""
    return {
        "visibility_timeout": VISIBILITY_TIMEOUT_SECONDS,
        "unacked_restore_interval": 1,
        "unacked_restore_throttle": 1,
        "priority_steps": sorted(PRIORITY_NUMBERS.values()),
        "socket_connect_timeout": CONNECT_TIMEOUT_SECONDS,
    }


def celery_app(settings: Settings) -> Celery:
    """The Celery application that clients publish with and workers build on."""
    from celery import Celery

    app = Celery("tgp-jobs", broker=settings.effective_redis_url, set_as_current=False)
    app.conf.update(
        accept_content=["json"],
        task_serializer="json",
        task_ignore_result=True,
        # A queue that nobody declared must not spring up from a typo.
        task_create_missing_queues=True,
        broker_transport_options=transport_options(),
        broker_connection_timeout=CONNECT_TIMEOUT_SECONDS,
        broker_connection_retry_on_startup=True,
        enable_utc=True,
    )
    return app


class Dispatcher:
    """Publishes shards; safe to keep for the life of a process, not across a fork."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._app: Celery | None = None

    def publish_unpublished(self, database: Database, job_id: str | None = None) -> int:
        """Send a message for every queued shard that has none.

        Returns:
            How many were sent.

        Raises:
            QueueUnavailableError: Redis cannot be reached; the shards stay
                unpublished and the next sweep tries again.
        """
        sent = 0
        while shards := publishing.take_unpublished(database, job_id):
            self._send(database, shards)
            sent += len(shards)
        return sent

    def publish_stale(self, database: Database, older_than_seconds: float) -> int:
        """Send again the messages of queues that are empty although shards wait.

        Raises:
            QueueUnavailableError: Redis cannot be reached.
        """
        sent = 0
        for model in publishing.models_waiting(database):
            if self.queue_length(model) == 0:
                shards = publishing.take_stale(database, model, older_than_seconds)
                self._send(database, shards)
                sent += len(shards)
        return sent

    def queue_length(self, model: str) -> int:
        """Messages waiting for a model, over all priorities.

        Raises:
            QueueUnavailableError: Redis cannot be reached.
        """
        with self._reachable(), self._celery.connection_for_read() as connection:
            return int(connection.default_channel.queue_declare(queue_name(model)).message_count)

    def ping(self) -> None:
        """Do nothing, but through Redis.

        Raises:
            QueueUnavailableError: Redis cannot be reached.
        """
        with self._reachable(), self._celery.connection_for_read() as connection:
            connection.ensure_connection(max_retries=0, timeout=CONNECT_TIMEOUT_SECONDS)

    def close(self) -> None:
        if self._app is not None:
            self._app.close()

    def _send(self, database: Database, shards: list[PublishableShard]) -> None:
        sent = 0
        try:
            with self._reachable(), self._celery.producer_or_acquire() as producer:
                for shard in shards:
                    self._celery.send_task(
                        TASK_NAME,
                        args=[shard.shard_id],
                        queue=queue_name(shard.model),
                        priority=PRIORITY_NUMBERS[shard.priority],
                        producer=producer,
                        retry=False,
                        ignore_result=True,  # else Celery looks for a result backend
                    )
                    sent += 1
        finally:
            publishing.unpublish(database, [shard.shard_id for shard in shards[sent:]])

    @contextmanager
    def _reachable(self) -> Iterator[None]:
        from kombu.exceptions import OperationalError
        from redis.exceptions import RedisError

        try:
            yield
        except (OperationalError, RedisError, OSError) as error:
            raise QueueUnavailableError(
                f"Redis at {redact_url(self._settings.effective_redis_url)} cannot be reached "
                f"({_reason(error)}); `tgp-jobs doctor` says how to mend it"
            ) from error

    @property
    def _celery(self) -> Celery:
        if self._app is None:
            self._app = celery_app(self._settings)
            # Somebody waits for the answer, and the sweeper tries again anyway:
            # kombu's own three attempts took six seconds to find a closed port.
            self._app.conf.broker_transport_options = transport_options() | {"max_retries": 0}
        return self._app


def _reason(error: BaseException) -> str:
    text = str(error).strip()
    return text.splitlines()[0] if text else type(error).__name__
