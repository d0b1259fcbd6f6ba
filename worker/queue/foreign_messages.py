"""What lies in a queue and is not ours: told and dropped, before Celery stumbles over it.

Celery takes much on trust. A message with a date that is none, say, ends the
whole worker, which puts it back first, so that the next worker ends as well.
Ours hold one number; so that is all of a message that Celery gets to see.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from celery.worker.consumer import Consumer
from kombu.transport import TRANSPORT_ALIASES, _transport_cache, redis, virtual

from jobs.dispatch import TASK_NAME
from worker.log import get_logger
from worker.queue.tasks import LARGEST_SHARD_ID

JSON = "application/json"


LONGEST_TASK_ID_CHARACTERS = 100


# What there must be to acknowledge a message, or to put it back.
KEPT_PROPERTIES = ("delivery_tag", "delivery_info", "delivery_mode", "body_encoding")


def install() -> None:
    """Let connections of this process be guarded ones."""
    # By the alias: with a URL like redis+socket:// kombu asks for no class. And
    # in the place of what kombu remembers, if this process had a connection before.
    TRANSPORT_ALIASES["redis"] = f"{__name__}:GuardedTransport"
    _transport_cache["redis"] = GuardedTransport


class GuardedMessage(virtual.Message):  # type: ignore[misc]
    """Is not unpacked: a few bytes may unpack to any number, and ours are never packed."""

    def __init__(self, payload: Any, channel: Any = None, **options: Any) -> None:
        if isinstance(payload.get("headers"), dict):
            payload["headers"].pop("compression", None)
        super().__init__(payload, channel=channel, **options)


class GuardedChannel(redis.Channel):  # type: ignore[misc]
    """Drops what is no message at all: no JSON, no envelope, a damaged body."""

    Message = GuardedMessage

    def _brpop_read(self, **options: Any) -> Any:
        try:
            return super()._brpop_read(**options)
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
            # Redis has handed it out and kombu has not noted it down: it is gone.
            _tell(f"it is no message ({type(error).__name__})")
            return True


class GuardedTransport(redis.Transport):  # type: ignore[misc]
    Channel = GuardedChannel


class GuardedConsumer(Consumer):  # type: ignore[misc]
    """Passes on shards' ids and drops the rest."""

    def create_task_handler(self, *args: Any, **kwargs: Any) -> Callable[[Any], None]:
        handle = super().create_task_handler(*args, **kwargs)

        def on_message(message: Any) -> None:
            try:
                make_plain(message)
            except ForeignMessageError as refusal:
                _tell(str(refusal))
                message.reject_log_error(get_logger(), self.connection_errors)
            else:
                handle(message)

        return on_message


class ForeignMessageError(Exception):
    """The message is not ours; the text says why."""


def make_plain(message: Any) -> None:
    """Leave of a message what one of ours has, a shard's id and a name for it.

    Whatever else it says, such as when to run it or what to run next, is gone.

    Raises:
        ForeignMessageError: It is not one of ours.
    """
    headers = message.headers
    if not isinstance(headers, dict) or headers.get("task") != TASK_NAME:
        raise ForeignMessageError("it names another task, or none")
    task_id = headers.get("id")
    if not isinstance(task_id, str) or len(task_id) > LONGEST_TASK_ID_CHARACTERS:
        raise ForeignMessageError("it has no id")
    if message.content_type != JSON:
        # Never decoded: a pickle runs code as it is read.
        raise ForeignMessageError(f"its body is not {JSON}")
    if not isinstance(message.delivery_info, dict):
        raise ForeignMessageError("it does not say where it was sent")
    shard_id = shard_id_in(message.body)
    message.headers = {"lang": "py", "task": TASK_NAME, "id": task_id, "root_id": task_id}
    message.headers |= {"argsrepr": f"({shard_id},)", "ignore_result": True}
    message.body = json.dumps([[shard_id], {}, {}])
    message.content_encoding = "utf-8"
    known = message.properties
    message.properties = {name: known[name] for name in KEPT_PROPERTIES if name in known}
    message.properties["correlation_id"] = task_id


def shard_id_in(body: bytes | str) -> int:
    """The one argument of a call of ours: [[id], {}, anything].

    Raises:
        ForeignMessageError: The body is something else.
    """
    try:
        (shard_id,), named, *_ = json.loads(body)
    except (ValueError, TypeError, RecursionError):
        shard_id, named = None, {}
    if named != {} or type(shard_id) is not int or not 0 < shard_id <= LARGEST_SHARD_ID:
        raise ForeignMessageError("it does not hold exactly a shard's id")
    return shard_id


def _tell(reason: str) -> None:
    get_logger().error("message_dropped", reason=reason)
