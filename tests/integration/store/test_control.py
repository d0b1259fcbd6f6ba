"""Cancel keeps what is done; retry runs what failed, and nothing else."""

from __future__ import annotations

import pytest
from sqlalchemy import select

from jobs.database import Database
from jobs.errors import LeaseLostError
from jobs.models import completions, shards
from jobs.store import leases, reading, recovery
from jobs.store.control import cancel_job, retry_job
from tests.ledger import (
    LEASE_SECONDS,
    claim,
    column,
    record,
    results_of,
    run_job,
    shard_ids,
    submit,
    submit_and_claim,
    try_claim,
    work_through,
)

pytestmark = pytest.mark.integration


def test_a_cancelled_job_keeps_its_results_and_runs_no_more(database: Database) -> None:
    # given a job with a shard done, one half done and one waiting
    job_id = submit(database, 12)
    first, second, third = shard_ids(database, job_id)
    work_through(database, claim(database, first), failing=[0])
    half_done = claim(database, second)
    record(database, half_done, [4, 5])
    # when it is cancelled
    assert cancel_job(database, job_id) is True
    # then its counts stay, its worker is told, and nothing can be claimed
    report = reading.job_report(database, job_id)
    assert (report.status, report.completed, report.failed, report.pending) == (
        "cancelled",
        5,
        1,
        6,
    )
    assert report.finished_at is not None
    assert leases.renew_lease(database, half_done, LEASE_SECONDS) is False
    assert try_claim(database, third) is None
    assert results_of(database, job_id) == [0, 1, 2, 3, 4, 5]


def test_a_job_can_be_cancelled_before_it_runs(database: Database) -> None:
    job_id = submit(database)
    assert cancel_job(database, job_id) is True
    assert column(database, select(shards.c.status)) == ["cancelled"]


def test_a_job_that_has_ended_cannot_be_cancelled(database: Database) -> None:
    job_id = submit(database)
    run_job(database, job_id)
    before = reading.job_report(database, job_id)
    assert cancel_job(database, job_id) is False
    assert reading.job_report(database, job_id) == before


def test_retry_runs_the_failed_prompts_only(database: Database) -> None:
    # given a completed job of three shards, in which prompts 1 and 9 failed
    job_id = submit(database, 12)
    run_job(database, job_id, failing=[1, 9])
    # when it is retried
    assert retry_job(database, job_id) == 2
    # then those two are pending, and shards without a failure stay as they are
    first, second, third = shard_ids(database, job_id)
    assert try_claim(database, second) is None
    pending = [
        prompt.index
        for shard_id in (first, third)
        for prompt in leases.pending_prompts(database, claim(database, shard_id))
    ]
    assert pending == [1, 9]


def test_a_retried_job_ends_again_with_right_counts(database: Database) -> None:
    job_id = submit(database, 8)
    run_job(database, job_id, failing=[1, 5, 6])
    retry_job(database, job_id)
    report = reading.job_report(database, job_id)
    assert (report.status, report.finished_at) == ("queued", None)
    assert (report.completed, report.failed, report.pending) == (5, 0, 3)
    # when two of three succeed this time
    run_job(database, job_id, failing=[6])
    report = reading.job_report(database, job_id)
    assert (report.status, report.completed, report.failed) == ("completed", 7, 1)
    assert results_of(database, job_id) == list(range(8))


def test_retry_asks_for_new_messages(database: Database) -> None:
    job_id = submit(database)
    run_job(database, job_id, failing=[0])
    retry_job(database, job_id)
    assert column(database, select(shards.c.published_at)) == [None]


def test_retry_takes_up_what_a_failed_job_never_reached(database: Database) -> None:
    # given a job that failed with a shard done, one half done and one untouched
    job_id = submit(database, 12)
    first, second, _ = shard_ids(database, job_id)
    work_through(database, claim(database, first), failing=[3])
    half_done = claim(database, second)
    record(database, half_done, [4])
    leases.fail_job(database, half_done, code="model_load_failed", message="no such folder")
    # when it is retried
    assert retry_job(database, job_id) == 1 + 3 + 4
    # then it has no error any more and everything missing is run
    report = reading.job_report(database, job_id)
    assert (report.status, report.error_code, report.error_message) == ("queued", None, None)
    run_job(database, job_id)
    report = reading.job_report(database, job_id)
    assert (report.status, report.completed, report.failed) == ("completed", 12, 0)


def test_a_job_without_failures_is_left_as_it_is(database: Database) -> None:
    job_id = submit(database)
    run_job(database, job_id)
    before = reading.job_report(database, job_id)
    assert retry_job(database, job_id) == 0
    assert reading.job_report(database, job_id) == before


@pytest.mark.parametrize("state", ["cancelled", "running"])
def test_only_a_completed_or_failed_job_is_retried(database: Database, state: str) -> None:
    held = submit_and_claim(database)
    record(database, held, [0], failing=[0])
    if state == "cancelled":
        cancel_job(database, held.job_id)
    assert retry_job(database, held.job_id) == 0
    assert reading.job_report(database, held.job_id).status == state
    assert column(database, select(completions.c.error_code)) == ["prompt_too_long"]


def test_a_retried_job_s_former_owner_is_refused(database: Database) -> None:
    held = submit_and_claim(database)
    work_through(database, held, failing=[0])
    retry_job(database, held.job_id)
    claim(database, held.shard_id)
    with pytest.raises(LeaseLostError):
        record(database, held, [0])


@pytest.mark.parametrize("failing", [[1], [2], [1, 2], [9], [1, 9]], ids=str)
def test_retry_after_a_split_runs_every_failed_prompt_once(
    database: Database, failing: list[int]
) -> None:
    # given a shard cut in halves between prompts 1 and 2, when the others had results
    job_id = submit(database, 10, shard_size=10)
    (shard_id,) = shard_ids(database, job_id)
    held = claim(database, shard_id)
    record(database, held, [0, 3, 4, 5, 6, 7, 8, 9], failing=failing)
    leases.release_shard(database, held, error="it died")
    assert recovery.isolate_poison(database, claim(database, shard_id), max_crashes=1)
    run_job(database, job_id, failing=failing)
    assert reading.job_report(database, job_id).failed == len(failing)
    # when the job is retried
    assert retry_job(database, job_id) == len(failing)
    run_job(database, job_id)
    # then nothing is missing
    report = reading.job_report(database, job_id)
    assert (report.status, report.completed, report.failed) == ("completed", 10, 0)
    assert results_of(database, job_id) == list(range(10))
