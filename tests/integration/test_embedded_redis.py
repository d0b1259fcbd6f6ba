"""The embedded Redis comes back when it is killed."""

from __future__ import annotations

import os
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
import redis

from jobs.settings import Settings
from worker.log import get_logger
from worker.queue.embedded_redis import EmbeddedRedis

pytestmark = pytest.mark.integration


@pytest.fixture
def settings() -> Iterator[Settings]:
    # Not pytest's tmp_path: the socket's path must be short.
    with tempfile.TemporaryDirectory(prefix="tgp-redis-") as folder:
        yield Settings(home=Path(folder))


@pytest.fixture
def server(settings: Settings) -> Iterator[EmbeddedRedis]:
    server = EmbeddedRedis(settings, get_logger())
    server.start()
    yield server
    server.stop()


def process_of(settings: Settings) -> int:
    with redis.Redis(unix_socket_path=str(settings.redis_socket)) as client:
        return int(client.info("server")["process_id"])


def test_a_killed_server_is_started_again_with_what_it_held(
    settings: Settings, server: EmbeddedRedis
) -> None:
    with redis.Redis(unix_socket_path=str(settings.redis_socket)) as client:
        client.lpush("queue", "message")
    process = process_of(settings)
    os.kill(process, signal.SIGKILL)
    psutil.Process(process).wait(10)

    server.revive()

    assert process_of(settings) != process
    with redis.Redis(unix_socket_path=str(settings.redis_socket)) as client:
        assert client.llen("queue") == 1


def test_a_server_that_answers_is_left_alone(settings: Settings, server: EmbeddedRedis) -> None:
    process = process_of(settings)

    server.revive()

    assert process_of(settings) == process
