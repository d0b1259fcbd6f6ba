"""Which shards the messages in Redis are about, in the layout that kombu gives them there."""

from __future__ import annotations

import json
import time
from base64 import b64decode
from collections.abc import Iterator
from typing import Any

# A worker acknowledges when a shard is over, but claims it at once: a message
# that was taken longer ago than this went down with who took it.
JUST_TAKEN_SECONDS = 60.0


def messages_of(channel: Any, queue: str) -> set[int]:
    """The ids of the shards with a message in a queue, or in the hands of a worker just now.

    Args:
        channel: kombu's, of its Redis transport.
        queue: The queue's name.
    """
    found: set[int] = set()
    for priority in channel.priority_steps:
        for raw in channel.client.lrange(channel._q_for_pri(queue, priority), 0, -1):
            found.update(_shard_ids(_loaded(raw)))
    since = time.time() - JUST_TAKEN_SECONDS
    for tag in channel.client.zrangebyscore(channel.unacked_index_key, since, "+inf"):
        raw = channel.client.hget(channel.unacked_key, tag)
        # [message, exchange, routing key]
        taken = _loaded(raw) if raw is not None else None
        if isinstance(taken, list) and taken:
            found.update(_shard_ids(taken[0]))
    return found


def _loaded(raw: bytes) -> Any:
    try:
        return json.loads(raw)
    except (ValueError, RecursionError):
        return None  # not ours


def _shard_ids(message: Any) -> Iterator[int]:
    """The one argument of a message of ours; nothing of another's."""
    try:
        arguments, *_ = json.loads(b64decode(message["body"]))
        (shard_id,) = arguments
    except (ValueError, KeyError, TypeError, RecursionError):
        return
    if type(shard_id) is int:
        yield shard_id
