"""Publishing without a Redis: the same code against a fake that speaks its protocol."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import replace

import pytest
from fakeredis import TcpFakeServer

from jobs.database import Database
from jobs.dispatch import Dispatcher
from jobs.settings import Settings
from tests.ledger import submit


@pytest.fixture
def fake_redis_url() -> Iterator[str]:
    server = TcpFakeServer(("127.0.0.1", 0), server_type="redis")
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    host, port = server.server_address[:2]
    yield f"redis://{host!s}:{port}/0"
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture
def dispatcher(settings: Settings, fake_redis_url: str) -> Iterator[Dispatcher]:
    dispatcher = Dispatcher(replace(settings, redis_url=fake_redis_url))
    yield dispatcher
    dispatcher.close()


def test_every_shard_of_a_job_gets_one_message(
    dispatcher: Dispatcher, sqlite_database: Database
) -> None:
    job_id = submit(sqlite_database, 12)

    assert dispatcher.publish_unpublished(sqlite_database, job_id) == 3

    assert dispatcher.queue_length("tiny-bloom") == 3


def test_what_was_published_is_not_published_again(
    dispatcher: Dispatcher, sqlite_database: Database
) -> None:
    job_id = submit(sqlite_database, 12)
    dispatcher.publish_unpublished(sqlite_database, job_id)

    assert dispatcher.publish_unpublished(sqlite_database, job_id) == 0

    assert dispatcher.queue_length("tiny-bloom") == 3
