"""A sweep finds what got lost, and survives what fails."""

from __future__ import annotations

import os
import threading
import time
from dataclasses import replace
from typing import cast

import pytest
from sqlalchemy import update

from jobs.database import Database
from jobs.dispatch import Dispatcher
from jobs.errors import QueueUnavailableError
from jobs.models import database_now, shards, workers
from jobs.settings import Settings
from jobs.store import publishing
from jobs.store.reading import WORKER_SILENT_SECONDS
from jobs.store.workers import live_workers, register_worker
from tests.ledger import claim, expire_lease, shard, shard_ids, submit
from worker.log import get_logger
from worker.queue.sweeper import Sweeper


class RecordingDispatcher:
    """Marks shards as published as the real one does, and sends nothing."""

    def __init__(self) -> None:
        self.published: list[int] = []
        self.stale_after: list[float] = []
        self.fails_with: Exception | None = None

    def publish_unpublished(self, database: Database, job_id: str | None = None) -> int:
        if self.fails_with is not None:
            raise self.fails_with
        taken = publishing.take_unpublished(database, job_id)
        self.published += [each.shard_id for each in taken]
        return len(taken)

    def publish_stale(self, database: Database, older_than_seconds: float) -> int:
        self.stale_after.append(older_than_seconds)
        return 0


@pytest.fixture
def dispatcher() -> RecordingDispatcher:
    return RecordingDispatcher()


@pytest.fixture
def sweeper(
    settings: Settings, sqlite_database: Database, dispatcher: RecordingDispatcher
) -> Sweeper:
    register_worker(
        sqlite_database, worker_id="w", hostname="box", process=1, version="0", models=["m"]
    )
    return Sweeper(
        settings=replace(settings, sweep_seconds=0.1),
        database=sqlite_database,
        dispatcher=cast(Dispatcher, dispatcher),
        worker_id="w",
        log=get_logger(),
    )


def test_a_sweep_publishes_what_waits_without_a_message(
    sweeper: Sweeper, sqlite_database: Database, dispatcher: RecordingDispatcher
) -> None:
    ids = shard_ids(sqlite_database, submit(sqlite_database, 8))
    sweeper.sweep()
    assert dispatcher.published == ids


def test_a_sweep_queues_and_publishes_what_a_dead_worker_held(
    sweeper: Sweeper, sqlite_database: Database, dispatcher: RecordingDispatcher
) -> None:
    # given a shard whose message was used up and whose owner is silent
    (shard_id,) = shard_ids(sqlite_database, submit(sqlite_database))
    with sqlite_database.write() as connection:
        connection.execute(update(shards).values(published_at=database_now()))
    claim(sqlite_database, shard_id, worker="dead")
    expire_lease(sqlite_database, shard_id)
    # then one sweep is enough to have it run again
    sweeper.sweep()
    assert shard(sqlite_database, shard_id).status == "queued"
    assert dispatcher.published == [shard_id]


def test_messages_count_as_lost_after_two_sweeps(
    sweeper: Sweeper, dispatcher: RecordingDispatcher
) -> None:
    sweeper.sweep()
    assert dispatcher.stale_after == [pytest.approx(0.2)]


def test_a_sweep_says_that_its_worker_lives(sweeper: Sweeper, sqlite_database: Database) -> None:
    with sqlite_database.write() as connection:
        connection.execute(
            update(workers).values(last_seen_at=database_now(-WORKER_SILENT_SECONDS - 1))
        )
    assert live_workers(sqlite_database) == []
    sweeper.sweep()
    assert [worker.id for worker in live_workers(sqlite_database)] == ["w"]


@pytest.mark.parametrize(
    "error", [QueueUnavailableError(), RuntimeError("something unheard of")], ids=["known", "other"]
)
def test_a_sweep_that_fails_leaves_the_work_to_the_next(
    sweeper: Sweeper,
    sqlite_database: Database,
    dispatcher: RecordingDispatcher,
    error: Exception,
) -> None:
    ids = shard_ids(sqlite_database, submit(sqlite_database))
    dispatcher.fails_with = error
    sweeper.sweep()
    assert dispatcher.published == []
    dispatcher.fails_with = None
    sweeper.sweep()
    assert dispatcher.published == ids


def test_sweeps_begin_at_once_go_on_and_end_when_told(
    sweeper: Sweeper, dispatcher: RecordingDispatcher
) -> None:
    sweeper.start()
    deadline = time.monotonic() + 20
    while len(dispatcher.stale_after) < 2:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    sweeper.stop()
    assert "sweeper" not in [thread.name for thread in threading.enumerate()]


@pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning")
def test_no_child_is_forked_in_the_middle_of_a_sweep(
    sweeper: Sweeper, dispatcher: RecordingDispatcher, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A child that inherits an open SQLite connection breaks the ledger for all."""
    # given a sweep that is under way, with its connections open
    in_the_middle, may_end = threading.Event(), threading.Event()

    def publish(*_: object) -> int:
        in_the_middle.set()
        assert may_end.wait(10)
        return 0

    monkeypatch.setattr(dispatcher, "publish_unpublished", publish)
    sweeper.start()
    assert in_the_middle.wait(10)
    forked = threading.Event()

    def fork() -> None:
        pid = os.fork()
        if pid == 0:
            os._exit(0)
        forked.set()
        os.waitpid(pid, 0)

    # when somebody forks, then the fork waits for the sweep's end
    forking = threading.Thread(target=fork)
    forking.start()
    assert not forked.wait(0.3)
    may_end.set()
    assert forked.wait(10)
    forking.join()
    sweeper.stop()
