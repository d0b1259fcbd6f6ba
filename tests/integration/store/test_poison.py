"""A prompt that kills its worker is found and failed; its neighbours complete."""

from __future__ import annotations

import pytest
from sqlalchemy import select

from jobs.database import Database
from jobs.models import completions
from jobs.store import leases, reading, recovery
from jobs.store.control import retry_job
from jobs.store.results import result_rows
from tests.ledger import (
    claim,
    column,
    expire_lease,
    record,
    results_of,
    shard,
    shard_ids,
    submit,
    work_through,
)

pytestmark = pytest.mark.integration

MAX_CRASHES = 3


def work_beside_poison(database: Database, job_id: str, poison: set[int], rows: int) -> int:
    """Work on a job as workers do that die of some prompts; how many died.

    Args:
        database: The ledger.
        job_id: The job.
        poison: The prompts that kill.
        rows: How many prompts are generated together.
    """
    deaths = 0
    while (shard_id := leases.next_shard_of(database, job_id)) is not None:
        held = claim(database, shard_id, worker=f"worker-{deaths}")
        if recovery.isolate_poison(database, held, MAX_CRASHES):
            continue
        pending = [prompt.index for prompt in leases.pending_prompts(database, held)]
        for start in range(0, len(pending), rows):
            together = pending[start : start + rows]
            if poison & set(together):
                deaths += 1
                assert deaths < 200, "the deaths of workers must end"
                expire_lease(database, shard_id)
                break
            record(database, held, together)
        else:
            leases.finish_shard(database, held)
    return deaths


def test_a_shard_below_the_limit_is_run_again_whole(database: Database) -> None:
    # given a shard that cost two workers
    (shard_id,) = shard_ids(database, submit(database))
    for _ in range(2):
        claim(database, shard_id)
        expire_lease(database, shard_id)
    held = claim(database, shard_id)
    assert recovery.isolate_poison(database, held, MAX_CRASHES) is False
    assert shard(database, shard_id).status == "running"


def test_a_shard_at_the_limit_is_cut_in_halves(database: Database) -> None:
    job_id = submit(database)
    (shard_id,) = shard_ids(database, job_id)
    for _ in range(MAX_CRASHES):
        claim(database, shard_id)
        expire_lease(database, shard_id)
    # when it is claimed once more
    assert recovery.isolate_poison(database, claim(database, shard_id), MAX_CRASHES) is True
    # then both halves wait for a message and bear one more death each
    halves = [shard(database, each) for each in shard_ids(database, job_id)]
    assert [(half.first_index, half.last_index) for half in halves] == [(0, 1), (2, 3)]
    assert {(half.status, half.crashes, half.published_at) for half in halves} == {
        ("queued", MAX_CRASHES - 1, None)
    }


def test_a_shard_with_every_result_is_finished_whatever_it_cost(database: Database) -> None:
    # given a worker that died after its last write, for the third time
    (shard_id,) = shard_ids(database, submit(database, 1))
    for _ in range(MAX_CRASHES):
        held = claim(database, shard_id)
        record(database, held, [0])
        expire_lease(database, shard_id)
    held = claim(database, shard_id)
    assert recovery.isolate_poison(database, held, MAX_CRASHES) is False
    work_through(database, held)


@pytest.mark.parametrize("rows", [1, 16])
@pytest.mark.parametrize("poison", [0, 37, 63])
def test_the_prompt_that_kills_is_failed_and_the_rest_completes(
    database: Database, poison: int, rows: int
) -> None:
    # given a shard of 64 with one prompt that kills every worker
    job_id = submit(database, 64, shard_size=64)
    deaths = work_beside_poison(database, job_id, {poison}, rows)
    # then it alone failed, and each prompt has a result
    report = reading.job_report(database, job_id)
    assert (report.status, report.completed, report.failed) == ("completed", 63, 1)
    failed = next(result_rows(database, job_id, failed_only=True))
    assert (failed.index, failed.error_code) == (poison, "worker_crashed")
    assert failed.error_message == "the worker died 3 times on this prompt alone"
    assert results_of(database, job_id) == list(range(64))
    # and it cost a bounded number of workers: the shard, its halvings, the prompt
    assert deaths <= MAX_CRASHES * 8


def test_two_prompts_that_kill_are_both_found(database: Database) -> None:
    job_id = submit(database, 16, shard_size=16)
    work_beside_poison(database, job_id, {3, 12}, rows=4)
    failed = list(result_rows(database, job_id, failed_only=True))
    assert [row.index for row in failed] == [3, 12]
    assert reading.job_report(database, job_id).completed == 14


def test_a_prompt_is_not_blamed_for_deaths_it_had_company_in(database: Database) -> None:
    # given a shard of two that cost as many workers as one may
    job_id = submit(database, 2)
    (shard_id,) = shard_ids(database, job_id)
    for _ in range(MAX_CRASHES - 1):
        claim(database, shard_id)
        expire_lease(database, shard_id)
    # and the last of them wrote one result before it died
    record(database, claim(database, shard_id), [0])
    expire_lease(database, shard_id)
    # when the prompt that is left is looked at
    held = claim(database, shard_id)
    # then it gets its chances rather than being failed
    assert recovery.isolate_poison(database, held, MAX_CRASHES) is False
    assert column(database, select(completions.c.error_code)) == [None]


def test_the_last_error_that_was_caught_is_told(database: Database) -> None:
    job_id = submit(database, 1)
    (shard_id,) = shard_ids(database, job_id)
    for _ in range(MAX_CRASHES):
        leases.release_shard(database, claim(database, shard_id), error="RuntimeError: boom")
    recovery.isolate_poison(database, claim(database, shard_id), MAX_CRASHES)
    (row,) = result_rows(database, job_id)
    assert row.error_message == (
        "the worker died 3 times on this prompt alone; the last error was: RuntimeError: boom"
    )


def test_a_stale_owner_does_not_cut_a_shard(database: Database) -> None:
    # given a shard at the limit whose claim was taken over
    job_id = submit(database)
    (shard_id,) = shard_ids(database, job_id)
    for _ in range(MAX_CRASHES):
        claim(database, shard_id)
        expire_lease(database, shard_id)
    stale = claim(database, shard_id)
    expire_lease(database, shard_id)
    claim(database, shard_id, worker="worker-b")
    # then the stale owner must not run it, and it stays whole
    assert recovery.isolate_poison(database, stale, MAX_CRASHES) is True
    assert shard_ids(database, job_id) == [shard_id]
    assert shard(database, shard_id).lease_owner == "worker-b"


def test_a_retried_prompt_that_killed_gets_its_chances_again(database: Database) -> None:
    job_id = submit(database, 8, shard_size=8)
    work_beside_poison(database, job_id, {5}, rows=8)
    assert retry_job(database, job_id) == 1
    # when it is harmless this time
    assert work_beside_poison(database, job_id, set(), rows=8) == 0
    report = reading.job_report(database, job_id)
    assert (report.status, report.completed, report.failed) == ("completed", 8, 0)
