"""Shards that share batches: who joins, and who is blamed when their worker dies."""

from __future__ import annotations

from functools import partial

import pytest

from jobs.database import Database
from jobs.store import joining, leases, recovery
from jobs.store.control import cancel_job
from jobs.store.records import Claim
from tests.ledger import (
    LEASE_SECONDS,
    at_once,
    claim,
    expire_lease,
    shard,
    shard_ids,
    submit,
    submit_and_claim,
    work_through,
)

pytestmark = pytest.mark.integration


def join(database: Database, shard_id: int, held: Claim) -> Claim | None:
    return leases.claim_shard(
        database,
        shard_id,
        worker_id=held.worker_id,
        process=held.process,
        lease_seconds=LEASE_SECONDS,
        beside=[held],
    )


def pair(database: Database) -> tuple[Claim, Claim]:
    """Two shards of a job that one worker runs together."""
    first = submit_and_claim(database, 8)
    second = join(database, first.shard_id + 1, first)
    assert second is not None
    return first, second


def test_the_first_in_line_is_named(database: Database) -> None:
    # given jobs of all priorities, and an older one of another model
    submit(database, 4, model="tiny-flan", priority="high")
    jobs = {each: submit(database, 8, priority=each) for each in ("low", "normal", "high")}
    newer = submit(database, 4, priority="high")
    # when one after the other is taken
    taken = []
    while (found := joining.shard_to_join(database, "tiny-bloom")) is not None:
        taken.append((found.shard_id, found.priority))
        claim(database, found.shard_id)
    # then by priority, then by age, then in input order
    in_line = [jobs["high"], newer, jobs["normal"], jobs["low"]]
    assert [each for each, _ in taken] == [
        shard_id for job_id in in_line for shard_id in shard_ids(database, job_id)
    ]
    assert [priority for _, priority in taken] == ["high"] * 3 + ["normal"] * 2 + ["low"] * 2


def test_shards_of_one_job_only_can_be_asked_for(database: Database) -> None:
    submit(database)
    job_id = submit(database)
    found = joining.shard_to_join(database, "tiny-bloom", job_id=job_id)
    assert found is not None
    assert found.shard_id == shard_ids(database, job_id)[0]


def test_what_is_not_waiting_is_not_in_line(database: Database) -> None:
    cancel_job(database, submit(database))
    work_through(database, submit_and_claim(database))
    submit_and_claim(database)
    leases.release_shard(database, submit_and_claim(database), error="it broke")
    assert joining.shard_to_join(database, "tiny-bloom") is None


def test_the_highest_priority_that_waits_is_told(database: Database) -> None:
    assert joining.priority_waiting(database, ["tiny-flan", "other"]) is None
    submit(database, model="tiny-flan", priority="low")
    submit(database, model="tiny-bloom", priority="high")
    assert joining.priority_waiting(database, ["tiny-flan", "other"]) == "low"
    submit(database, model="other")
    assert joining.priority_waiting(database, ["tiny-flan", "other"]) == "normal"


def test_those_that_share_batches_are_marked(database: Database) -> None:
    first, second = pair(database)
    assert not second.runs_alone
    assert [shard(database, each.shard_id).beside_others for each in (first, second)] == [True] * 2


def test_a_shard_that_is_taken_does_not_join_even_if_its_lease_ran_out(database: Database) -> None:
    # Its owner died with it, so it endangers whoever it is run beside.
    held = submit_and_claim(database, 8)
    other = claim(database, held.shard_id + 1, worker="worker-b")
    expire_lease(database, other.shard_id)
    assert join(database, other.shard_id, held) is None
    assert not shard(database, held.shard_id).beside_others


def test_workers_that_want_the_same_shard_get_it_once(database: Database) -> None:
    ids = shard_ids(database, submit(database, 16))
    held = [claim(database, each, worker=f"w{each}") for each in ids[:3]]
    joined = at_once(*(partial(join, database, ids[3], each) for each in held))
    assert sum(each is not None for each in joined) == 1


def test_a_death_beside_another_is_counted_against_neither(database: Database) -> None:
    # given a worker that died with two shards
    for each in pair(database):
        expire_lease(database, each.shard_id)
    # when both are queued again
    for shard_id in recovery.requeue_expired(database):
        row = shard(database, shard_id)
        assert (row.crashes, row.runs_alone, row.beside_others) == (0, True, False)
    # then neither joins another, and the next claims know it
    assert joining.shard_to_join(database, "tiny-bloom") is None
    assert claim(database, row.id).runs_alone


def test_the_next_death_is_its_own(database: Database) -> None:
    first, _ = pair(database)
    # given a death beside another, taken up by the worker's next child
    alone = claim(database, first.shard_id, process=101)
    assert (alone.crashes, alone.runs_alone) == (0, True)
    # when that one dies as well
    assert claim(database, first.shard_id, process=102).crashes == 1


def test_what_is_given_back_is_beside_none(database: Database) -> None:
    first, second = pair(database)
    leases.release_shard(database, first)
    leases.finish_shard(database, second)
    assert [shard(database, each.shard_id).beside_others for each in (first, second)] == [False] * 2
    assert not claim(database, first.shard_id).runs_alone


def test_an_error_beside_another_is_counted_against_neither(database: Database) -> None:
    first, second = pair(database)
    for each in (first, second):
        leases.release_shard(database, each, error="RuntimeError: CUDA error")
        row = shard(database, each.shard_id)
        assert (row.crashes, row.runs_alone) == (0, True)
        assert row.last_error == "RuntimeError: CUDA error"
