"""Each prompt gets one result, each shard its sums, and each job its end."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import pytest
from sqlalchemy import null, select

from jobs.database import Database
from jobs.models import completions, micro_batches
from jobs.store import leases, reading, recording
from jobs.store.control import cancel_job
from jobs.store.results import result_rows
from tests.ledger import (
    LEASE_SECONDS,
    at_once,
    batch,
    claim,
    column,
    count_micro_batches,
    outcome,
    record,
    results_of,
    shard,
    shard_ids,
    submit,
    submit_and_claim,
    work_through,
)

pytestmark = pytest.mark.integration


def test_results_are_written_with_their_batch_and_counted(database: Database) -> None:
    # given a claimed shard of four
    held = submit_and_claim(database)
    # when two completions and a failure are recorded
    assert record(database, held, [0, 2, 3], failing=[2]) == 3
    # then the shard's sums leave out the failure's tokens
    row = shard(database, held.shard_id)
    assert (row.completed_prompts, row.failed_prompts) == (2, 1)
    assert (row.prompt_tokens, row.completion_tokens) == (6, 4)
    assert (row.prefill_seconds, row.decode_seconds) == (0.25, 1.0)
    # and each result names the batch it was in
    batches = column(database, select(micro_batches.c.id))
    assert column(database, select(completions.c.micro_batch_id)) == batches * 3


def test_a_batch_written_twice_counts_once(database: Database) -> None:
    # given a batch whose commit the worker did not hear of
    held = submit_and_claim(database)
    record(database, held, [0, 1])
    before = shard(database, held.shard_id)
    # when it is written again
    assert record(database, held, [0, 1]) == 0
    # then there is one result each, one batch, and the same sums
    assert results_of(database, held.job_id) == [0, 1]
    assert count_micro_batches(database) == 1
    after = shard(database, held.shard_id)
    assert (after.completed_prompts, after.prompt_tokens, after.decode_seconds) == (
        before.completed_prompts,
        before.prompt_tokens,
        before.decode_seconds,
    )


def test_a_prompt_that_has_a_result_keeps_it(database: Database) -> None:
    held = submit_and_claim(database)
    record(database, held, [0])
    # when a batch brings another result for it beside a new one
    assert record(database, held, [0, 1], failing=[0]) == 1
    # then the first stays, and only the new one is counted
    kept = column(database, select(completions.c.text).order_by(completions.c.prompt_index))
    assert kept == ["completion 0", "completion 1"]
    row = shard(database, held.shard_id)
    assert (row.completed_prompts, row.failed_prompts) == (2, 0)


def test_refusals_without_generation_make_no_batch(database: Database) -> None:
    held = submit_and_claim(database)
    refused = batch([outcome(1, "bad_parameter")], rows=0, prefill_seconds=0, decode_seconds=0)
    assert recording.record_micro_batch(database, held, refused, LEASE_SECONDS) == 1
    assert count_micro_batches(database) == 0
    assert shard(database, held.shard_id).failed_prompts == 1


def test_what_a_window_took_and_what_a_row_brought_come_back(database: Database) -> None:
    # given a window of a streamed model, with more bytes than 32 bits hold
    held = submit_and_claim(database)
    logprobs = [{"token": "\N{REPLACEMENT CHARACTER} a", "token_id": 5, "logprob": -0.5, "top": []}]
    row = replace(outcome(1), first_token_seconds=0.75, logprobs=logprobs)
    window = batch(
        [row],
        steps=10,
        row_steps=15,
        row_capacity=4,
        streamed_bytes=2**40,
        link_wait_seconds=6.0,
        compute_seconds=2.0,
    )
    assert recording.record_micro_batch(database, held, window, LEASE_SECONDS) == 1
    # then both are read as they were written
    (result,) = result_rows(database, held.job_id)
    assert (result.first_token_seconds, result.logprobs) == (0.75, logprobs)
    assert result.tokens_per_second == 2 / 1.25
    steps = reading.step_report(database, held.job_id)
    assert (steps.steps, steps.rows, steps.row_capacity) == (10, 1.5, 4.0)
    assert (steps.streamed_bytes, steps.link_wait_share) == (2**40, 0.75)


@pytest.mark.parametrize(
    "text", ["", " ", '"quoted" \\n \\u0041', "\n\r\t\x01\x7f\x9b", "é \U0001f600 \u2028", "null"]
)
def test_a_text_comes_back_as_it_was(database: Database, text: str) -> None:
    held = submit_and_claim(database)
    row = replace(outcome(1), text=text, logprobs=[{"token": text, "top": []}])
    recording.record_micro_batch(database, held, batch([row]), LEASE_SECONDS)
    (result,) = result_rows(database, held.job_id)
    assert (result.text, result.logprobs) == (text, [{"token": text, "top": []}])


def test_what_a_result_has_not_is_null_in_the_ledger(database: Database) -> None:
    # A JSON null must not be taken for a value.
    held = submit_and_claim(database)
    record(database, held, [0])
    empty = select(completions.c.prompt_index).where(
        completions.c.logprobs.is_(null()), completions.c.error_code.is_(None)
    )
    assert column(database, empty) == [0]


def test_a_large_batch_is_written_in_one_go(database: Database) -> None:
    # given more rows than one INSERT statement holds
    held = submit_and_claim(database, 2_500, shard_size=2_500)
    assert record(database, held, range(2_500)) == 2_500
    assert shard(database, held.shard_id).completed_prompts == 2_500


def test_pending_prompts_are_those_of_the_shard_without_a_result(database: Database) -> None:
    ids = shard_ids(database, submit(database, 8))
    held = claim(database, ids[1])
    assert [prompt.index for prompt in leases.pending_prompts(database, held)] == [4, 5, 6, 7]
    record(database, held, [6, 4], failing=[4])
    pending = leases.pending_prompts(database, held)
    assert [(prompt.index, prompt.prompt) for prompt in pending] == [
        (5, "prompt 5"),
        (7, "prompt 7"),
    ]


def test_a_job_ends_with_its_last_shard(database: Database) -> None:
    job_id = submit(database, 8)
    first, second = [claim(database, shard_id) for shard_id in shard_ids(database, job_id)]
    work_through(database, second)
    assert reading.job_report(database, job_id).status == "running"
    work_through(database, first)
    report = reading.job_report(database, job_id)
    assert (report.status, report.completed, report.shards_completed) == ("completed", 8, 2)
    assert report.finished_at is not None


def test_a_job_with_failed_prompts_still_completes(database: Database) -> None:
    held = submit_and_claim(database)
    work_through(database, held, failing=[1])
    report = reading.job_report(database, held.job_id)
    assert (report.status, report.completed, report.failed) == ("completed", 3, 1)


def test_a_finished_shard_has_no_owner(database: Database) -> None:
    held = submit_and_claim(database)
    work_through(database, held)
    row = shard(database, held.shard_id)
    assert (row.lease_owner, row.lease_process, row.lease_expires_at) == (None, None, None)
    assert row.finished_at is not None


def test_two_workers_that_finish_the_last_shards_at_once_end_the_job(database: Database) -> None:
    for _ in range(15):
        # given a job of two shards, held by two workers
        job_id = submit(database, 2, shard_size=1)
        held = [
            claim(database, shard_id, worker=f"worker-{shard_id}")
            for shard_id in shard_ids(database, job_id)
        ]
        # when both finish at the same moment
        ended = at_once(*[partial(work_through, database, each) for each in held])
        # then neither failed, and the job saw its end
        assert ended == [None, None]
        assert reading.job_report(database, job_id).status == "completed"


def test_a_cancel_and_the_last_finish_at_once_leave_one_end(database: Database) -> None:
    for _ in range(10):
        held = submit_and_claim(database, 1)
        record(database, held, [0])
        finished, cancelled = at_once(
            partial(leases.finish_shard, database, held),
            partial(cancel_job, database, held.job_id),
        )
        # Whoever came first decided, and the other was told.
        status = reading.job_report(database, held.job_id).status
        assert status == ("cancelled" if cancelled is True else "completed")
        assert (finished is None) == (status == "completed")
