"""A shard has one owner at a time, and whoever lost it can write nothing."""

from __future__ import annotations

import threading
from collections.abc import Callable
from functools import partial
from itertools import chain
from typing import Any

import pytest
from sqlalchemy import select, update

from jobs.database import Database
from jobs.errors import LeaseLostError
from jobs.models import jobs, shards
from jobs.store import leases, reading, recovery
from jobs.store.control import cancel_job
from jobs.store.records import Claim
from tests.ledger import (
    LEASE_SECONDS,
    at_once,
    claim,
    column,
    count_micro_batches,
    expire_lease,
    record,
    results_of,
    shard,
    shard_ids,
    submit,
    submit_and_claim,
    try_claim,
    work_through,
)

pytestmark = pytest.mark.integration


def test_a_claim_says_what_the_worker_needs(database: Database) -> None:
    # given a job of ten prompts with parameters
    job_id = submit(database, 10, model="tiny-flan", parameters={"temperature": 0.5})
    second = shard_ids(database, job_id)[1]
    # when its second shard is claimed
    taken = claim(database, second, worker="w", process=7)
    # then the claim names the shard's prompts, and the job runs
    assert 0 <= taken.queued_seconds < 60
    assert taken == Claim(
        shard_id=second,
        job_id=job_id,
        model="tiny-flan",
        first_index=4,
        last_index=7,
        attempt=1,
        crashes=0,
        load_crashes=0,
        runs_alone=False,
        worker_id="w",
        process=7,
        job_parameters={"temperature": 0.5},
        queued_seconds=taken.queued_seconds,
    )
    report = reading.job_report(database, job_id)
    assert (report.status, report.started_at is not None) == ("running", True)


def test_a_duplicate_message_finds_the_shard_taken(database: Database) -> None:
    taken = submit_and_claim(database)
    assert try_claim(database, taken.shard_id, worker="worker-b") is None
    assert try_claim(database, taken.shard_id) is None, "nor does its own owner get it twice"
    assert shard(database, taken.shard_id).attempt == 1


def test_a_late_message_finds_the_shard_done(database: Database) -> None:
    taken = submit_and_claim(database)
    work_through(database, taken)
    assert try_claim(database, taken.shard_id, worker="worker-b") is None


def test_a_message_for_no_shard_is_nobodys(database: Database) -> None:
    assert try_claim(database, 987_654) is None


def test_eight_workers_claim_two_hundred_shards_once_each(database: Database) -> None:
    # given 200 messages that each came to two of eight workers
    ids = shard_ids(database, submit(database, 200, shard_size=1))
    claimed: list[list[int]] = [[] for _ in range(8)]

    def work(worker: int) -> None:
        for shard_id in ids[worker % 4 :: 4]:
            if try_claim(database, shard_id, worker=f"worker-{worker}") is not None:
                claimed[worker].append(shard_id)

    # when all of them claim whatever they can, the two side by side
    ended = at_once(*[partial(work, worker) for worker in range(8)])
    # then nobody failed, and every shard went to exactly one
    assert ended == [None] * 8
    assert sorted(chain.from_iterable(claimed)) == ids
    assert set(column(database, select(shards.c.attempt))) == {1}


def test_a_shard_whose_lease_ran_out_can_be_claimed(database: Database) -> None:
    taken = submit_and_claim(database)
    expire_lease(database, taken.shard_id)
    # when another worker claims it
    again = claim(database, taken.shard_id, worker="worker-b")
    # then the fence has moved, and a death is counted
    assert again.attempt == 2
    assert shard(database, taken.shard_id).crashes == 1


def test_a_worker_s_next_process_takes_over_from_its_dead_one(database: Database) -> None:
    # given a shard held by a process of worker-a that died with a long lease
    taken = submit_and_claim(database)
    # when its next process gets the message again
    again = claim(database, taken.shard_id, process=101)
    # then it need not wait for the lease, and a death is counted
    assert (again.attempt, again.process) == (2, 101)
    assert shard(database, taken.shard_id).crashes == 1


def test_a_first_claim_counts_no_death(database: Database) -> None:
    assert shard(database, submit_and_claim(database).shard_id).crashes == 0


@pytest.mark.parametrize("status", ["completed", "failed", "cancelled"])
def test_the_shards_of_an_ended_job_cannot_be_claimed(database: Database, status: str) -> None:
    # given an ended job with a shard that still says it is queued
    job_id = submit(database)
    with database.write() as connection:
        connection.execute(update(jobs).values(status=status))
    # then it is not claimed, and the job's end stays
    assert try_claim(database, shard_ids(database, job_id)[0]) is None
    assert reading.job_report(database, job_id).status == status


def test_renewing_keeps_the_lease_from_running_out(database: Database) -> None:
    taken = submit_and_claim(database)
    expire_lease(database, taken.shard_id)
    assert leases.renew_lease(database, taken, LEASE_SECONDS) is True
    assert recovery.requeue_expired(database) == []


def test_recording_keeps_the_lease_from_running_out(database: Database) -> None:
    taken = submit_and_claim(database)
    expire_lease(database, taken.shard_id)
    record(database, taken, [0])
    assert recovery.requeue_expired(database) == []


def test_a_running_shard_without_a_lease_is_swept(database: Database) -> None:
    # as a restored or hand-made ledger may have it
    held = submit_and_claim(database)
    with database.write() as connection:
        connection.execute(update(shards).values(lease_owner=None, lease_expires_at=None))
    assert recovery.requeue_expired(database) == [held.shard_id]
    assert shard(database, held.shard_id).crashes == 1


def test_an_expired_lease_is_queued_again_and_counted(database: Database) -> None:
    # given one shard whose owner is silent and one whose owner lives
    silent, living = shard_ids(database, submit(database, 8))
    claim(database, silent)
    claim(database, living, worker="worker-b")
    expire_lease(database, silent)
    # when a sweep looks for such shards
    assert recovery.requeue_expired(database) == [silent]
    # then only the silent one is queued, without a message or an owner
    row = shard(database, silent)
    assert (row.status, row.crashes, row.published_at) == ("queued", 1, None)
    assert (row.lease_owner, row.lease_process, row.lease_expires_at) == (None, None, None)
    assert shard(database, living).status == "running"


def test_of_many_sweepers_one_requeues_each_shard(database: Database) -> None:
    ids = shard_ids(database, submit(database, 40, shard_size=1))
    for shard_id in ids:
        claim(database, shard_id, lease_seconds=-1.0)
    swept = at_once(*[lambda: recovery.requeue_expired(database)] * 4)
    assert sorted(chain.from_iterable(swept)) == ids
    assert set(column(database, select(shards.c.crashes))) == {1}


def test_a_shard_given_back_can_be_claimed_without_a_death(database: Database) -> None:
    taken = submit_and_claim(database)
    assert leases.release_shard(database, taken) is True
    again = claim(database, taken.shard_id, worker="worker-b")
    assert (again.attempt, shard(database, taken.shard_id).crashes) == (2, 0)


def test_a_shard_given_back_with_an_error_counts_a_crash(database: Database) -> None:
    taken = submit_and_claim(database)
    leases.release_shard(database, taken, error="RuntimeError: boom")
    row = shard(database, taken.shard_id)
    assert (row.status, row.crashes, row.last_error) == ("queued", 1, "RuntimeError: boom")


def test_a_job_without_queue_is_offered_its_shards_in_order(database: Database) -> None:
    job_id = submit(database, 12)
    offered = []
    while (shard_id := leases.next_shard_of(database, job_id)) is not None:
        offered.append(shard_id)
        claim(database, shard_id)
    assert offered == shard_ids(database, job_id)


def test_a_job_without_queue_is_offered_a_silent_owner_s_shard(database: Database) -> None:
    taken = submit_and_claim(database)
    assert leases.next_shard_of(database, taken.job_id) is None
    expire_lease(database, taken.shard_id)
    assert leases.next_shard_of(database, taken.job_id) == taken.shard_id


def takeover(database: Database, stale: Claim) -> None:
    expire_lease(database, stale.shard_id)
    claim(database, stale.shard_id, worker="worker-b")


def requeued(database: Database, stale: Claim) -> None:
    expire_lease(database, stale.shard_id)
    recovery.requeue_expired(database)


def back_at_the_same_worker(database: Database, stale: Claim) -> None:
    expire_lease(database, stale.shard_id)
    claim(database, stale.shard_id)


def cancelled(database: Database, stale: Claim) -> None:
    cancel_job(database, stale.job_id)


LOSSES = [takeover, requeued, back_at_the_same_worker, cancelled]


@pytest.mark.parametrize("lose", LOSSES)
def test_a_stale_owner_s_results_are_refused_whole(
    database: Database, lose: Callable[[Database, Claim], None]
) -> None:
    stale = submit_and_claim(database)
    lose(database, stale)
    before = shard(database, stale.shard_id)
    with pytest.raises(LeaseLostError):
        record(database, stale, [0, 1])
    assert results_of(database, stale.job_id) == []
    assert count_micro_batches(database) == 0
    assert shard(database, stale.shard_id) == before


@pytest.mark.parametrize("lose", LOSSES)
@pytest.mark.parametrize(
    "write",
    [
        leases.finish_shard,
        lambda database, stale: leases.fail_job(database, stale, code="c", message="m"),
    ],
    ids=["finish_shard", "fail_job"],
)
def test_a_stale_owner_cannot_end_anything(
    database: Database,
    lose: Callable[[Database, Claim], None],
    write: Callable[[Database, Claim], Any],
) -> None:
    stale = submit_and_claim(database)
    lose(database, stale)
    before = (shard(database, stale.shard_id), reading.job_report(database, stale.job_id))
    with pytest.raises(LeaseLostError):
        write(database, stale)
    assert before == (shard(database, stale.shard_id), reading.job_report(database, stale.job_id))


@pytest.mark.parametrize("lose", LOSSES)
@pytest.mark.parametrize(
    "write",
    [
        lambda database, stale: leases.renew_lease(database, stale, LEASE_SECONDS),
        leases.release_shard,
        lambda database, stale: leases.release_shard(database, stale, error="late"),
    ],
    ids=["renew_lease", "release_shard", "release_shard after a crash"],
)
def test_a_stale_owner_changes_nothing_and_is_told(
    database: Database,
    lose: Callable[[Database, Claim], None],
    write: Callable[[Database, Claim], bool],
) -> None:
    stale = submit_and_claim(database)
    lose(database, stale)
    before = shard(database, stale.shard_id)
    assert write(database, stale) is False
    assert shard(database, stale.shard_id) == before


def test_a_failed_model_fails_its_whole_job(database: Database) -> None:
    # given a job with one shard done, one held and one waiting
    job_id = submit(database, 12)
    done, held, _ = shard_ids(database, job_id)
    work_through(database, claim(database, done))
    holder = claim(database, held)
    # when the model cannot be loaded
    leases.fail_job(database, holder, code="model_load_failed", message="no such folder")
    # then the job has ended with the reason, and what was done stays
    report = reading.job_report(database, job_id)
    assert (report.status, report.error_code, report.error_message) == (
        "failed",
        "model_load_failed",
        "no such folder",
    )
    assert report.finished_at is not None
    assert (report.completed, report.pending) == (4, 8)
    mine = select(shards.c.status).where(shards.c.job_id == job_id).order_by(shards.c.id)
    assert column(database, mine) == ["completed", "failed", "failed"]


def test_claims_go_on_while_results_are_written(database: Database) -> None:
    # given one worker that writes and one that claims, of one job
    ids = shard_ids(database, submit(database, 80, shard_size=4))
    writer = claim(database, ids[0])
    stop = threading.Event()

    def renew() -> int:
        count = 0
        while not stop.is_set():
            assert leases.renew_lease(database, writer, LEASE_SECONDS)
            count += 1
        return count

    def take() -> int:
        try:
            return sum(
                try_claim(database, shard_id, worker="worker-b") is not None for shard_id in ids[1:]
            )
        finally:
            stop.set()

    # then neither fails
    renewals, claims = at_once(renew, take)
    assert claims == 19
    assert renewals > 0
