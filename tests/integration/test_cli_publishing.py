"""What `submit` and `retry` do with a real Redis, and with none."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from jobs.database import Database
from jobs.dispatch import Dispatcher
from jobs.settings import Settings
from jobs.store.publishing import take_unpublished
from jobs.store.reading import job_reports
from tests.services import RealRedis
from tests.unit.cli.conftest import Tgp, prompt_file, tgp
from tests.unit.cli.working import completed, failed, work_off

__all__ = ["prompt_file", "tgp"]

pytestmark = pytest.mark.integration


def queued_messages(settings: Settings, redis: RealRedis) -> int:
    dispatcher = Dispatcher(Settings(home=settings.home, redis_url=redis.url))
    try:
        return dispatcher.queue_length("tiny-bloom")
    finally:
        dispatcher.close()


def test_submit_sends_a_message_per_shard(
    tgp: Tgp, prompt_file: Path, settings: Settings, real_redis: RealRedis
) -> None:
    options = ("--model", "tiny-bloom", "--shard-size", "1", "--redis-url", real_redis.url)
    result = tgp("submit", prompt_file, *options, "--json")
    assert result.stderr == "no worker is running: start one with tgp-jobs worker\n"
    assert json.loads(result.stdout)["published"] is True
    assert queued_messages(settings, real_redis) == 3


def test_retry_sends_the_messages_again(
    tgp: Tgp,
    prompt_file: Path,
    settings: Settings,
    sqlite_database: Database,
    real_redis: RealRedis,
) -> None:
    job_id = tgp("submit", prompt_file, "--model", "tiny-bloom").stdout.strip()
    work_off(sqlite_database, job_id, [completed(0), completed(1), failed(2)])
    document = json.loads(tgp("retry", job_id, "--redis-url", real_redis.url, "--json").stdout)
    assert document == {"id": job_id, "queued_again": 1, "published": True}
    assert queued_messages(settings, real_redis) == 1


def test_a_redis_that_cannot_be_reached_leaves_the_job_to_a_sweep(
    tgp: Tgp, prompt_file: Path, sqlite_database: Database
) -> None:
    url = "redis://:secret@127.0.0.1:1/0"
    result = tgp("submit", prompt_file, "--model", "tiny-bloom", "--redis-url", url)
    assert result.exit_code == 0
    assert "starts when a worker with the same database starts or sweeps" in result.stderr
    assert "secret" not in result.stderr
    (job,) = job_reports(sqlite_database)
    assert result.stdout == f"{job.id}\n"
    assert len(take_unpublished(sqlite_database, job.id)) == 1


def test_a_postgres_without_a_schema_says_what_to_do(
    tgp: Tgp, prompt_file: Path, empty_postgres_url: str
) -> None:
    where = ("--database-url", empty_postgres_url)
    refused = tgp("submit", prompt_file, "--model", "tiny-bloom", *where)
    assert refused.exit_code == 1
    assert "run `tgp-jobs db upgrade` once" in refused.stderr
    assert tgp("db", "upgrade", *where).exit_code == 0
    assert tgp("submit", prompt_file, "--model", "tiny-bloom", *where).exit_code == 0
