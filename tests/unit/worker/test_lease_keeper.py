"""A lease lives as long as the work, and its loss is noticed."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

import pytest

from jobs.database import Database
from jobs.errors import DatabaseUnavailableError
from jobs.store import leases, recovery
from jobs.store.control import cancel_job
from tests.ledger import claim, expire_lease, shard, submit_and_claim
from worker.log import get_logger
from worker.shards.lease_keeper import LeaseKeeper

LEASE_SECONDS = 0.15


def wait_until(true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not true():
        assert time.monotonic() < deadline, "it never came true"
        time.sleep(0.01)


def test_a_lease_is_renewed_while_the_work_goes_on(sqlite_database: Database) -> None:
    # given a lease that has just run out
    held = submit_and_claim(sqlite_database)
    expire_lease(sqlite_database, held.shard_id)
    before = shard(sqlite_database, held.shard_id).lease_expires_at
    # when it is kept
    with LeaseKeeper(sqlite_database, held, LEASE_SECONDS, get_logger()) as keeper:
        wait_until(lambda: shard(sqlite_database, held.shard_id).lease_expires_at > before)
        # then it is ours still
        assert keeper.lost is False


def cancel(database: Database, shard_id: int, job_id: str) -> None:
    cancel_job(database, job_id)


def take_over(database: Database, shard_id: int, job_id: str) -> None:
    expire_lease(database, shard_id)
    claim(database, shard_id, worker="another")


@pytest.mark.parametrize("lose", [cancel, take_over])
def test_a_lost_lease_is_noticed(
    sqlite_database: Database, lose: Callable[[Database, int, str], None]
) -> None:
    held = submit_and_claim(sqlite_database)
    lose(sqlite_database, held.shard_id, held.job_id)
    with LeaseKeeper(sqlite_database, held, LEASE_SECONDS, get_logger()) as keeper:
        wait_until(lambda: keeper.lost)


def test_a_database_that_is_away_for_a_while_is_no_loss(
    sqlite_database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    # given a database that fails the first two renewals
    held = submit_and_claim(sqlite_database)
    renew = leases.renew_lease
    calls = []

    def away_at_first(*arguments: Any) -> bool:
        calls.append(arguments)
        if len(calls) <= 2:
            raise DatabaseUnavailableError
        return renew(*arguments)

    monkeypatch.setattr(leases, "renew_lease", away_at_first)
    with LeaseKeeper(sqlite_database, held, LEASE_SECONDS, get_logger()) as keeper:
        wait_until(lambda: len(calls) > 3)
        # then it is tried again and nothing is given up
        assert keeper.lost is False


def test_nothing_is_renewed_when_the_work_is_over(sqlite_database: Database) -> None:
    held = submit_and_claim(sqlite_database)
    with LeaseKeeper(sqlite_database, held, LEASE_SECONDS, get_logger()):
        assert [thread.name for thread in threading.enumerate()].count("lease-keeper") == 1
    assert "lease-keeper" not in [thread.name for thread in threading.enumerate()]


def test_the_keeper_ends_with_an_error_in_the_work(sqlite_database: Database) -> None:
    held = submit_and_claim(sqlite_database)
    with (
        pytest.raises(ValueError, match="boom"),
        LeaseKeeper(sqlite_database, held, LEASE_SECONDS, get_logger()),
    ):
        raise ValueError("boom")
    assert "lease-keeper" not in [thread.name for thread in threading.enumerate()]
    # A claim that is not kept runs out, for a sweep to find.
    expire_lease(sqlite_database, held.shard_id)
    assert recovery.requeue_expired(sqlite_database) == [held.shard_id]
