"""The only place that sends messages: «shard N may be run».

All state is in the ledger, so a message that is lost, late or delivered twice
costs time at most.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any
from uuid import uuid4

from jobs.database import Database
from jobs.errors import QueueUnavailableError, SettingsError
from jobs.settings import Settings, redact_url
from jobs.store import publishing
from jobs.store.records import PublishableShard

if TYPE_CHECKING:
    from kombu import Connection, Producer

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


class Dispatcher:
    """Publishes shards; safe to keep for the life of a process, not across a fork."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._connection: Connection | None = None

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
        with self._connected() as connection:
            return int(connection.default_channel.queue_declare(queue_name(model)).message_count)

    def ping(self) -> None:
        """Do nothing, but through Redis.

        Raises:
            QueueUnavailableError: Redis cannot be reached.
            SettingsError: Its URL cannot be used.
        """
        with self._connected():
            pass

    def close(self) -> None:
        if self._connection is not None:
            self._connection.release()
            self._connection = None

    def _send(self, database: Database, shards: list[PublishableShard]) -> None:
        sent = 0
        try:
            with self._connected() as connection:
                producer = connection.Producer(serializer="json", auto_declare=False)
                for shard in shards:
                    _publish(producer, shard)
                    sent += 1
        finally:
            publishing.unpublish(database, [shard.shard_id for shard in shards[sent:]])

    @contextmanager
    def _connected(self) -> Iterator[Connection]:
        """The connection to Redis, open; any failure of it in our words."""
        from kombu.exceptions import OperationalError
        from redis.exceptions import RedisError

        if self._connection is None:
            self._connection = new_connection(self._settings)
        try:
            _open(self._connection, self._settings)
            yield self._connection
        except (OperationalError, RedisError, OSError) as error:
            self.close()
            raise QueueUnavailableError(
                f"Redis at {redact_url(self._settings.effective_redis_url)} cannot be reached "
                f"({_reason(error)}); `tgp-jobs doctor` says how to mend it"
            ) from error


def new_connection(settings: Settings) -> Connection:
    """A connection to Redis that is not open yet.

    Raises:
        SettingsError: The URL means nothing to kombu.
    """
    from kombu import Connection

    with _url_refused(settings):
        return Connection(
            settings.effective_redis_url,
            connect_timeout=CONNECT_TIMEOUT_SECONDS,
            # Somebody waits for the answer, and the sweeper tries again anyway:
            # kombu's own three attempts took six seconds to find a closed port.
            transport_options=transport_options() | {"max_retries": 0},
        )


def _open(connection: Connection, settings: Settings) -> None:
    with _url_refused(settings):
        connection.ensure_connection(max_retries=0, timeout=CONNECT_TIMEOUT_SECONDS)


@contextmanager
def _url_refused(settings: Settings) -> Iterator[None]:
    """Whatever kombu and the Redis client raise of a URL they cannot read, in our words."""
    try:
        yield
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        # Not the error's own words, which may hold any part of the URL.
        raise SettingsError(
            f"redis_url: {redact_url(settings.effective_redis_url)!r} is not usable; expected "
            "redis://:PASSWORD@HOST:PORT/NUMBER, with options that the Redis client knows"
        ) from error


def _publish(producer: Producer, shard: PublishableShard) -> None:
    """Send one task message, in the second version of Celery's message protocol.

    Written out rather than left to `send_task`, which builds a whole
    application first: a fifth of the CPU that `submit` may use. The format is
    Celery's documentation's, under "Message Protocol".
    """
    task_id = str(uuid4())
    headers = {"lang": "py", "task": TASK_NAME, "id": task_id, "root_id": task_id}
    producer.publish(
        ([shard.shard_id], {}, {}),
        exchange="",
        routing_key=queue_name(shard.model),
        headers=headers | {"argsrepr": f"({shard.shard_id},)", "ignore_result": True},
        correlation_id=task_id,
        priority=PRIORITY_NUMBERS[shard.priority],
        delivery_mode="persistent",
        retry=False,
    )


def _reason(error: BaseException) -> str:
    text = str(error).strip()
    return text.splitlines()[0] if text else type(error).__name__
