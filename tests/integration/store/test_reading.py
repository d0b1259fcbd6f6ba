"""What the commands show is what the ledger holds."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta

import pytest
from sqlalchemy import update

from jobs.database import Database
from jobs.errors import AmbiguousJobError, UnknownJobError
from jobs.models import database_now, jobs, workers
from jobs.prompts.parameters import PromptRequest
from jobs.store import reading, recording, results
from jobs.store.reading import WORKER_SILENT_SECONDS, served_models
from jobs.store.records import ResultRow
from jobs.store.reports import ModelState
from jobs.store.results import result_rows
from jobs.store.submission import submit_job
from jobs.store.workers import (
    live_workers,
    register_worker,
    worker_loaded,
    worker_loading,
    worker_seen,
    worker_stopped,
    worker_unloaded,
)
from tests.ledger import (
    batch,
    claim,
    new_job,
    outcome,
    record,
    run_job,
    shard_ids,
    submit,
    submit_and_claim,
)

pytestmark = pytest.mark.integration


def jobs_called(database: Database, *ids: str) -> None:
    # Without prompts, whose foreign key holds the id.
    with database.write() as connection:
        for each in ids:
            connection.execute(
                jobs.insert().values(
                    id=each,
                    model="tiny-bloom",
                    status="queued",
                    priority="normal",
                    parameters={},
                    source_name="prompts.jsonl",
                    content_digest="d" * 64,
                    shard_size=4,
                    total_prompts=0,
                    created_at=database_now(),
                )
            )


def test_a_fresh_job_reports_what_it_was_told(database: Database) -> None:
    job_id = submit(
        database, 10, name="night run", priority="low", parameters={"seed": 7}, model="tiny-flan"
    )
    report = reading.job_report(database, job_id)
    assert (report.name, report.model, report.priority) == ("night run", "tiny-flan", "low")
    assert (report.parameters, report.source_name) == ({"seed": 7}, "prompts.jsonl")
    assert (report.status, report.ended) == ("queued", False)
    assert (report.total, report.completed, report.failed, report.pending) == (10, 0, 0, 10)
    assert (report.shards_total, report.shards_completed) == (3, 0)
    assert (report.tokens_per_second, report.eta_seconds) == (None, None)
    assert (report.started_at, report.finished_at) == (None, None)


def test_a_running_job_reports_its_speed_and_what_is_left(database: Database) -> None:
    # given half of a job's prompts, generated in 1.25 seconds
    held = submit_and_claim(database, 8)
    record(database, held, [0, 1, 2, 3], failing=[3])
    report = reading.job_report(database, held.job_id)
    # then 6 tokens took that long, and the other half will take as long again
    assert report.tokens_per_second == pytest.approx(6 / 1.25)
    assert report.eta_seconds == pytest.approx(1.25)
    assert (report.prompt_tokens, report.completion_tokens) == (9, 6)
    assert (report.prefill_seconds, report.decode_seconds) == (0.25, 1.0)


def test_a_worker_that_holds_two_shards_is_one_worker(database: Database) -> None:
    held = submit_and_claim(database, 12)
    claim(database, shard_ids(database, held.job_id)[1])
    record(database, held, [0, 1])
    # 2 prompts took 1.25 seconds, and 10 are left
    report = reading.job_report(database, held.job_id)
    assert report.eta_seconds == pytest.approx(10 * 1.25 / 2)
    # when another worker takes the third shard
    claim(database, shard_ids(database, held.job_id)[2], worker="worker-b")
    report = reading.job_report(database, held.job_id)
    assert report.eta_seconds == pytest.approx(10 * 1.25 / 2 / 2)


def test_an_ended_job_has_nothing_left_to_wait_for(database: Database) -> None:
    job_id = submit(database, 8)
    run_job(database, job_id)
    report = reading.job_report(database, job_id)
    assert (report.ended, report.pending, report.eta_seconds) == (True, 0, None)
    assert report.tokens_per_second is not None
    assert report.started_at is not None
    assert report.finished_at is not None
    assert report.created_at <= report.started_at <= report.finished_at


def test_times_are_aware_and_in_utc(database: Database) -> None:
    report = reading.job_report(database, submit(database))
    assert report.created_at.utcoffset() == timedelta(0)


def test_times_are_in_utc_whatever_the_session_s_zone(postgres_url: str) -> None:
    here = Database(postgres_url)
    there = Database(f"{postgres_url}&options=-c%20timezone%3DAsia/Kolkata")
    job_id = submit(here)
    created_at = reading.job_report(there, job_id).created_at
    assert created_at.utcoffset() == timedelta(0)
    assert created_at == reading.job_report(here, job_id).created_at
    for database in (here, there):
        database.close()


def test_sums_beyond_32_bits_are_told_as_integers(database: Database) -> None:
    held = submit_and_claim(database, 10)
    steps = {"steps": 7, "row_steps": 2**33, "row_capacity": 3, "streamed_bytes": 2**40 + 1}
    recording.record_micro_batch(database, held, batch([outcome(0)], **steps), 60)
    report = reading.step_report(database, held.job_id)
    assert (report.steps, report.rows, report.row_capacity) == (7, 2**33 / 7, 3.0)
    # and not as the decimals that Postgres makes of such sums
    assert repr(report.streamed_bytes) == repr(2**40 + 1)


def test_jobs_are_listed_newest_first(database: Database) -> None:
    ids = [submit(database) for _ in range(3)]
    listed = [report.id for report in reading.job_reports(database)]
    assert listed == ids[::-1]
    assert [report.id for report in reading.job_reports(database, limit=2)] == ids[:0:-1]


def test_jobs_are_listed_by_status(database: Database) -> None:
    done, waiting = submit(database), submit(database)
    run_job(database, done)
    assert [each.id for each in reading.job_reports(database, status="completed")] == [done]
    assert [each.id for each in reading.job_reports(database, status="queued")] == [waiting]


def test_a_list_s_sums_are_each_job_s_own(database: Database) -> None:
    first, second = submit(database, 8), submit(database, 4)
    run_job(database, first, failing=[0])
    by_id = {report.id: report for report in reading.job_reports(database)}
    assert by_id[first] == reading.job_report(database, first)
    assert (by_id[first].completed, by_id[first].failed) == (7, 1)
    assert (by_id[second].completed, by_id[second].failed) == (0, 0)


@pytest.mark.parametrize("typed", ["abc2", "abc", "ABC", " abc2 "])
def test_a_unique_prefix_is_enough(database: Database, typed: str) -> None:
    jobs_called(database, "abc2", "abd2")
    assert reading.find_job(database, typed) == "abc2"


def test_a_whole_id_is_found_although_another_is_longer(database: Database) -> None:
    jobs_called(database, "abc", "abcd")
    assert reading.find_job(database, "abc") == "abc"


def test_a_prefix_of_several_names_some(database: Database) -> None:
    jobs_called(database, *[f"ab{number}" for number in range(7)])
    with pytest.raises(AmbiguousJobError) as refusal:
        reading.find_job(database, "ab")
    assert refusal.value.message == (
        "'ab' could be ab0, ab1, ab2, ab3, ab4, ...: give more letters of the id"
    )


@pytest.mark.parametrize("typed", ["zz", "", "  ", "%", "ab_", "_"])
def test_an_id_that_nobody_has_is_refused(database: Database, typed: str) -> None:
    jobs_called(database, "abc2")
    with pytest.raises(UnknownJobError, match="tgp-jobs list"):
        reading.find_job(database, typed)


def test_a_report_of_no_job_is_refused(database: Database) -> None:
    with pytest.raises(UnknownJobError, match="'nothere'"):
        reading.job_report(database, "nothere")


def test_results_come_in_input_order_whatever_the_order_of_writing(database: Database) -> None:
    held = submit_and_claim(database)
    record(database, held, [3, 0])
    record(database, held, [2], failing=[2])
    rows = list(result_rows(database, held.job_id))
    assert [row.index for row in rows] == [0, 2, 3]
    assert [(row.prompt, row.text, row.error_code) for row in rows] == [
        ("prompt 0", "completion 0", None),
        ("prompt 2", None, "prompt_too_long"),
        ("prompt 3", "completion 3", None),
    ]


def test_a_result_row_says_everything_of_a_line(database: Database) -> None:
    chat = [{"role": "user", "content": "hello"}]
    request = PromptRequest(line=1, custom_id="mine", prompt=None, messages=chat, parameters={})
    job_id = submit_job(database, new_job(1), [request]).job_id
    run_job(database, job_id)
    (row,) = result_rows(database, job_id)
    assert row == ResultRow(
        index=0,
        custom_id="mine",
        prompt=None,
        messages=chat,
        text="completion 0",
        finish_reason="stop",
        prompt_tokens=3,
        completion_tokens=2,
        queued_seconds=0.5,
        prefill_seconds=0.25,
        decode_seconds=1.0,
        first_token_seconds=None,
        logprobs=None,
        error_code=None,
        error_message=None,
    )


@pytest.mark.parametrize("total", [1_999, 2_000, 2_001])
def test_results_of_several_pages_come_whole(database: Database, total: int) -> None:
    # given more results than a page of 1 000 holds
    assert results.ROWS_PER_PAGE == 1_000
    held = submit_and_claim(database, total, shard_size=total)
    record(database, held, range(total))
    assert [row.index for row in result_rows(database, held.job_id)] == list(range(total))


def test_results_go_on_after_an_index(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(results, "ROWS_PER_PAGE", 2)
    held = submit_and_claim(database, 8, shard_size=8)
    record(database, held, range(8))
    rows = result_rows(database, held.job_id, after=2)
    assert [row.index for row in rows] == [3, 4, 5, 6, 7]


def test_failed_only_pages_over_the_failed(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(results, "ROWS_PER_PAGE", 2)
    held = submit_and_claim(database, 9, shard_size=9)
    record(database, held, range(9), failing=[1, 4, 5, 8])
    rows = result_rows(database, held.job_id, failed_only=True)
    assert [row.index for row in rows] == [1, 4, 5, 8]


def test_results_of_one_job_are_not_another_s(database: Database) -> None:
    one, other = submit(database), submit(database)
    run_job(database, one)
    assert list(result_rows(database, other)) == []


def register(database: Database, worker_id: str = "w", models: tuple[str, ...] = ("m",)) -> None:
    register_worker(
        database,
        worker_id=worker_id,
        hostname="box",
        process=7,
        version="0.1.0",
        models=list(models),
    )


def fall_silent(database: Database, worker_id: str) -> None:
    with database.write() as connection:
        connection.execute(
            update(workers)
            .where(workers.c.id == worker_id)
            .values(last_seen_at=database_now(-WORKER_SILENT_SECONDS - 1))
        )


def test_a_new_worker_is_seen_idle(database: Database) -> None:
    register(database, models=("a", "b"))
    (seen,) = live_workers(database)
    assert (seen.id, seen.hostname, seen.process, seen.version) == ("w", "box", 7, "0.1.0")
    assert (seen.status, seen.models, seen.model, seen.device) == ("idle", ["a", "b"], None, None)
    assert 0 <= seen.seconds_since_seen < 60


def test_workers_are_listed_oldest_first_while_they_live(database: Database) -> None:
    for name in ("first", "silent", "stopped", "last"):
        register(database, name)
    fall_silent(database, "silent")
    worker_stopped(database, "stopped")
    assert [each.id for each in live_workers(database)] == ["first", "last"]
    # when the silent one speaks again
    worker_seen(database, "silent")
    assert [each.id for each in live_workers(database)] == ["first", "silent", "last"]


def test_models_are_served_by_live_workers_only(database: Database) -> None:
    register(database, "one", ("a", "b"))
    register(database, "two", ("b", "c"))
    register(database, "gone", ("d",))
    worker_stopped(database, "gone")
    assert served_models(database) == {"a", "b", "c"}


def test_a_model_nobody_holds_is_not_loaded(database: Database) -> None:
    register(database)
    assert reading.model_state(database, "m") == ModelState(state="not loaded")


def test_a_load_is_shown_as_far_as_it_is(database: Database) -> None:
    register(database)
    worker_loading(database, "w", model="m", stage="weights", done=3, total=9, unit="tensors")
    assert reading.model_state(database, "m") == ModelState(
        state="loading", worker_id="w", stage="weights", done=3, total=9, unit="tensors"
    )
    (seen,) = live_workers(database)
    assert (seen.status, seen.model) == ("loading", "m")


def test_a_loaded_model_forgets_its_load(database: Database) -> None:
    register(database)
    worker_loading(database, "w", model="m", stage="weights", done=3, total=9, unit="tensors")
    worker_loaded(database, "w", model="m", device="cuda:0", load_seconds=12.5)
    assert reading.model_state(database, "m") == ModelState(
        state="loaded", worker_id="w", load_seconds=12.5
    )
    (seen,) = live_workers(database)
    assert (seen.status, seen.model, seen.device) == ("idle", "m", "cuda:0")


@pytest.mark.parametrize("end", [worker_unloaded, worker_stopped, fall_silent])
def test_a_model_is_not_loaded_any_more_when_its_worker_lets_go(
    database: Database, end: Callable[[Database, str], None]
) -> None:
    register(database)
    worker_loaded(database, "w", model="m", device="cpu", load_seconds=1.0)
    end(database, "w")
    assert reading.model_state(database, "m").state == "not loaded"


def test_a_worker_that_has_the_model_goes_before_one_that_loads_it(database: Database) -> None:
    register(database, "has")
    register(database, "loads")
    worker_loaded(database, "has", model="m", device="cpu", load_seconds=1.0)
    worker_loading(database, "loads", model="m", stage="weights", done=0, total=9, unit="tensors")
    state = reading.model_state(database, "m")
    assert (state.state, state.worker_id) == ("loaded", "has")


def test_reading_does_not_wait_for_a_writer(database: Database) -> None:
    # given a transaction that has written and not ended
    job_id = submit(database)
    with database.write() as connection:
        connection.execute(update(jobs).values(name="not yet"))
        # then others read what was before
        assert reading.job_report(database, job_id).name is None
    assert reading.job_report(database, job_id).name == "not yet"
