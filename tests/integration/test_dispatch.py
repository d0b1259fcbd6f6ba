"""Messages on a real Redis: one a shard, with its id and nothing else."""

from __future__ import annotations

import base64
import json
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from kombu import Connection
from sqlalchemy import select, update

from jobs.database import Database
from jobs.dispatch import TASK_NAME, Dispatcher, queue_name, transport_options
from jobs.errors import QueueUnavailableError
from jobs.models import database_now, shards
from jobs.settings import Settings
from tests.ledger import claim, column, shard_ids, submit
from tests.services import RealRedis, own_redis

pytestmark = pytest.mark.integration

NOBODY_LISTENS = "redis://:secret-word@127.0.0.1:1/0"


@pytest.fixture
def dispatcher(settings: Settings, real_redis: RealRedis) -> Iterator[Dispatcher]:
    made = Dispatcher(replace(settings, redis_url=real_redis.url))
    yield made
    made.close()


@pytest.fixture
def dispatcher_of_nobody(settings: Settings) -> Iterator[Dispatcher]:
    made = Dispatcher(replace(settings, redis_url=NOBODY_LISTENS))
    yield made
    made.close()


def messages(redis: RealRedis, key: str) -> list[dict[str, Any]]:
    with redis.client() as client:
        return [json.loads(raw) for raw in reversed(client.lrange(key, 0, -1))]


def body(message: dict[str, Any]) -> Any:
    return json.loads(base64.b64decode(message["body"]))


def test_each_shard_gets_one_message_with_its_id_only(
    dispatcher: Dispatcher, sqlite_database: Database, real_redis: RealRedis
) -> None:
    job_id = submit(sqlite_database, 12, priority="high")
    assert dispatcher.publish_unpublished(sqlite_database, job_id) == 3
    sent = messages(real_redis, "tgp.tiny-bloom")
    assert [body(message) for message in sent] == [
        [[shard_id], {}, {}] for shard_id in shard_ids(sqlite_database, job_id)
    ]
    assert {message["content-type"] for message in sent} == {"application/json"}
    assert {message["headers"]["task"] for message in sent} == {TASK_NAME}
    assert {message["properties"]["delivery_mode"] for message in sent} == {2}


def test_no_text_of_a_job_goes_through_redis(
    dispatcher: Dispatcher, sqlite_database: Database, real_redis: RealRedis
) -> None:
    submit(sqlite_database, 4, name="the-secret-name")
    dispatcher.publish_unpublished(sqlite_database)
    with real_redis.client() as client:
        stored = b"".join(
            part for key in client.keys("tgp.*") for part in client.lrange(key, 0, -1)
        )
    decoded = stored + b"".join(
        base64.b64decode(message["body"]) for message in messages(real_redis, "tgp.tiny-bloom")
    )
    assert b"the-secret-name" not in decoded
    assert b"prompt 0" not in decoded


def test_each_model_has_a_queue_of_its_own(
    dispatcher: Dispatcher, sqlite_database: Database
) -> None:
    submit(sqlite_database, 8, model="tiny-bloom")
    submit(sqlite_database, 4, model="tiny-flan")
    dispatcher.publish_unpublished(sqlite_database)
    assert queue_name("tiny-flan") == "tgp.tiny-flan"
    lengths = {model: dispatcher.queue_length(model) for model in ("tiny-bloom", "tiny-flan", "x")}
    assert lengths == {"tiny-bloom": 2, "tiny-flan": 1, "x": 0}


def test_a_queue_s_length_is_that_of_all_priorities(
    dispatcher: Dispatcher, sqlite_database: Database
) -> None:
    for priority in ("high", "normal", "low"):
        submit(sqlite_database, 4, priority=priority)
    dispatcher.publish_unpublished(sqlite_database)
    assert dispatcher.queue_length("tiny-bloom") == 3


def test_high_goes_before_normal_and_normal_before_low(
    dispatcher: Dispatcher, sqlite_database: Database, real_redis: RealRedis
) -> None:
    # given jobs submitted in the worst order
    ids = {
        priority: shard_ids(sqlite_database, submit(sqlite_database, 4, priority=priority))[0]
        for priority in ("low", "normal", "high")
    }
    dispatcher.publish_unpublished(sqlite_database)
    # when a consumer with the worker's options takes them
    received = []
    with Connection(real_redis.url, transport_options=transport_options()) as connection:
        queue = connection.SimpleQueue("tgp.tiny-bloom")
        for _ in ids:
            message = queue.get(timeout=5)
            received.append(message.payload[0][0])
            message.ack()
        queue.close()
    assert received == [ids["high"], ids["normal"], ids["low"]]


def test_publishing_twice_sends_once(dispatcher: Dispatcher, sqlite_database: Database) -> None:
    submit(sqlite_database, 8)
    sent = [dispatcher.publish_unpublished(sqlite_database) for _ in range(2)]
    assert sent == [2, 0]
    assert dispatcher.queue_length("tiny-bloom") == 2


def test_without_redis_shards_stay_unpublished_and_the_refusal_hides_the_password(
    dispatcher_of_nobody: Dispatcher, sqlite_database: Database
) -> None:
    # given a Redis that does not answer
    submit(sqlite_database, 8)
    began = time.monotonic()
    # when a job is published
    with pytest.raises(QueueUnavailableError) as refusal:
        dispatcher_of_nobody.publish_unpublished(sqlite_database)
    # then that is said soon, without the password, and the sweeper will find the shards
    assert time.monotonic() - began < 10
    assert "secret-word" not in refusal.value.message
    assert refusal.value.message.startswith("Redis at redis://:***@127.0.0.1:1/0 cannot be reached")
    assert column(sqlite_database, select(shards.c.published_at)) == [None, None]


@pytest.mark.parametrize("ask", ["ping", "queue_length"])
def test_without_redis_every_question_is_refused_soon(
    dispatcher_of_nobody: Dispatcher, ask: str
) -> None:
    began = time.monotonic()
    with pytest.raises(QueueUnavailableError):
        getattr(dispatcher_of_nobody, ask)(*["tiny-bloom"] * (ask == "queue_length"))
    assert time.monotonic() - began < 10


def test_a_redis_that_answers_can_be_pinged(dispatcher: Dispatcher) -> None:
    dispatcher.ping()


def test_a_dispatcher_goes_on_when_redis_is_back(
    settings: Settings, sqlite_database: Database
) -> None:
    # given a dispatcher that has published, and a Redis that dies
    with own_redis() as redis:
        dispatcher = Dispatcher(replace(settings, redis_url=redis.url))
        submit(sqlite_database)
        dispatcher.publish_unpublished(sqlite_database)
        redis.kill()
        submit(sqlite_database)
        with pytest.raises(QueueUnavailableError):
            dispatcher.publish_unpublished(sqlite_database)
        # when it is back, with its append-only file
        redis.start()
        # then the same dispatcher sends what was left, and nothing is gone
        assert dispatcher.publish_unpublished(sqlite_database) == 1
        assert dispatcher.queue_length("tiny-bloom") == 2
        dispatcher.close()


def test_messages_that_redis_lost_are_sent_again(
    dispatcher: Dispatcher, sqlite_database: Database, real_redis: RealRedis
) -> None:
    # given three shards, one of them running, whose messages are flushed away
    ids = shard_ids(sqlite_database, submit(sqlite_database, 12))
    dispatcher.publish_unpublished(sqlite_database)
    claim(sqlite_database, ids[0])
    with real_redis.client() as client:
        client.flushall()
    with sqlite_database.write() as connection:
        connection.execute(update(shards).values(published_at=database_now(-100.0)))
    # when a sweep looks for them
    assert dispatcher.publish_stale(sqlite_database, 60.0) == 2
    # then the two that wait have a message again
    sent = messages(real_redis, "tgp.tiny-bloom\x06\x165")
    assert [body(message)[0] for message in sent] == [[ids[1]], [ids[2]]]


def test_messages_that_wait_are_not_sent_again(
    dispatcher: Dispatcher, sqlite_database: Database
) -> None:
    # given an old message in a queue that nobody serves
    submit(sqlite_database)
    dispatcher.publish_unpublished(sqlite_database)
    with sqlite_database.write() as connection:
        connection.execute(update(shards).values(published_at=database_now(-100.0)))
    assert dispatcher.publish_stale(sqlite_database, 60.0) == 0
    assert dispatcher.queue_length("tiny-bloom") == 1


def test_a_socket_in_a_folder_with_odd_characters_is_reached(
    settings: Settings, sqlite_database: Database
) -> None:
    # given a state directory whose name a URL would have to quote
    with own_redis() as redis, tempfile.TemporaryDirectory(prefix="tgp a%20é#?") as folder:
        odd = Settings(home=Path(folder))
        odd.redis_socket.parent.mkdir(parents=True)
        odd.redis_socket.symlink_to(redis.socket)
        dispatcher = Dispatcher(odd)
        submit(sqlite_database)
        assert dispatcher.publish_unpublished(sqlite_database) == 1
        dispatcher.close()
