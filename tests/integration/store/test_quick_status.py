"""`status` without SQLAlchemy reads what is read with it, or leaves it alone."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import timedelta

import pytest
from sqlalchemy import text, update

from jobs.database import Database
from jobs.models import database_now, workers
from jobs.schema import SCHEMA_REVISION
from jobs.settings import Settings
from jobs.store import control, leases, reading, recording
from jobs.store.quick_status import quick_status
from jobs.store.reports import StatusReports
from jobs.store.status_rows import WORKER_SILENT_SECONDS
from jobs.store.workers import register_worker, worker_loaded, worker_loading
from tests.fresh_process import run_in_fresh_process
from tests.ledger import LEASE_SECONDS, batch, outcome, record, run_job, submit, submit_and_claim

pytestmark = pytest.mark.integration


def usual_status(database: Database, job_id: str) -> StatusReports:
    report = reading.job_report(database, job_id)
    state = reading.model_state(database, report.model)
    return report, state, reading.step_report(database, job_id)


def queued(database: Database) -> str:
    return submit(database, 10)


def queued_with_all_it_was_told(database: Database) -> str:
    parameters = {"seed": 7, "temperature": 0.25, "stop": ["\u2028", "ü\U0001f600", '"', "\\"]}
    name = "naïve \U0001f600 [red] 'x' :job_id %s %(model)s"
    return submit(
        database, 3, name=name, parameters=parameters, priority="low", source_name="ü.jsonl"
    )


def running(database: Database) -> str:
    """Two windows of one shard, with timings; sums beyond 32 bits."""
    held = submit_and_claim(database, 10)
    steps = {"steps": 7, "row_steps": 2**33, "row_capacity": 3, "streamed_bytes": 2**40 + 1}
    seconds = {"link_wait_seconds": 0.1, "compute_seconds": 1 / 3}
    for outcomes in ([outcome(0), outcome(1)], [outcome(2, "prompt_too_long")]):
        window = batch(outcomes, **steps, **seconds)
        recording.record_micro_batch(database, held, window, LEASE_SECONDS)
    return held.job_id


def completed(database: Database) -> str:
    job_id = submit(database, 8)
    run_job(database, job_id, failing=[1])
    return job_id


def failed(database: Database) -> str:
    held = submit_and_claim(database, 8)
    leases.fail_job(database, held, code="model_load_failed", message="no such \x1b[31m ü file")
    return held.job_id


def cancelled(database: Database) -> str:
    held = submit_and_claim(database, 8)
    record(database, held, [0])
    control.cancel_job(database, held.job_id)
    return held.job_id


def with_workers(database: Database, *loaded: str) -> str:
    for name in ("silent", "loads", *loaded):
        register_worker(
            database, worker_id=name, hostname="b", process=7, version="1", models=["tiny-bloom"]
        )
        worker_loading(
            database, name, model="tiny-bloom", stage="weights", done=1, total=9, unit="GiB"
        )
    for name in loaded:
        worker_loaded(database, name, model="tiny-bloom", device="cpu", load_seconds=75.25)
    with database.write() as connection:
        connection.execute(
            update(workers)
            .where(workers.c.id == "silent")
            .values(last_seen_at=database_now(-WORKER_SILENT_SECONDS - 1))
        )
    return submit(database)


def whose_model_loads(database: Database) -> str:
    return with_workers(database)


def whose_model_is_loaded(database: Database) -> str:
    return with_workers(database, "has", "has-too")


JOBS = (
    queued,
    queued_with_all_it_was_told,
    running,
    completed,
    failed,
    cancelled,
    whose_model_loads,
    whose_model_is_loaded,
)


@pytest.mark.parametrize("make", JOBS)
def test_it_is_what_the_usual_way_reads(
    database: Database, database_settings: Settings, make: Callable[[Database], str]
) -> None:
    # given the job among others
    queued(database)
    job_id = make(database)
    completed(database)
    read = quick_status(database_settings, job_id)
    assert read == usual_status(database, job_id)
    # and of the same types, which a sum's Decimal would not be
    assert repr(read) == repr(usual_status(database, job_id))


@pytest.mark.parametrize("make", JOBS)
def test_the_cases_differ_in_what_is_read(
    sqlite_database: Database, make: Callable[[Database], str]
) -> None:
    # So that equal readings of the test above mean something.
    report, state, steps = usual_status(sqlite_database, make(sqlite_database))
    expected: dict[Callable[[Database], str], tuple[str, str, bool]] = {
        queued: ("queued", "not loaded", False),
        queued_with_all_it_was_told: ("queued", "not loaded", False),
        running: ("running", "not loaded", True),
        completed: ("completed", "not loaded", False),
        failed: ("failed", "not loaded", False),
        cancelled: ("cancelled", "not loaded", False),
        whose_model_loads: ("queued", "loading", False),
        whose_model_is_loaded: ("queued", "loaded", False),
    }
    assert (report.status, state.state, bool(steps.steps)) == expected[make]


def test_times_are_in_utc_whatever_the_session_s_zone(
    database_settings: Settings, database: Database
) -> None:
    job_id = submit(database)
    settings = database_settings
    if not database.is_sqlite:
        zone = "options=-c%20timezone%3DAsia/Kolkata"
        settings = replace(settings, database_url=f"{settings.database_url}&{zone}")
    read = quick_status(settings, job_id)
    assert read is not None
    assert read[0].created_at.utcoffset() == timedelta(0)
    assert read[0] == reading.job_report(database, job_id)


@pytest.mark.parametrize("typed", ["{}", "{:.7}", " {} ", "{:.3}"])
def test_a_unique_prefix_is_enough(
    database: Database, database_settings: Settings, typed: str
) -> None:
    job_id = submit(database)
    for each in (typed.format(job_id), typed.format(job_id).upper()):
        read = quick_status(database_settings, each)
        assert read is not None
        assert read[0].id == job_id


def rename(database: Database, job_id: str, name: str) -> None:
    """A job without prompts, whose foreign key would hold the id."""
    with database.write() as connection:
        for table in ("prompts", "shards"):
            connection.execute(text(f"DELETE FROM {table} WHERE job_id = :id"), {"id": job_id})
        connection.execute(
            text("UPDATE jobs SET id = :name WHERE id = :id"), {"name": name, "id": job_id}
        )


def test_a_whole_id_goes_before_a_longer_one_and_a_common_prefix_is_nobody_s(
    database: Database, database_settings: Settings
) -> None:
    for name in ("abc", "abcd"):
        rename(database, submit(database), name)
    read = quick_status(database_settings, "abc")
    assert read is not None
    assert read[0].id == "abc"
    assert quick_status(database_settings, "ab") is None


@pytest.mark.parametrize("typed", ["zz", "", "  ", "%", "_", "' OR '1'='1"])
def test_an_id_of_no_job_is_left_to_the_usual_way(
    database: Database, database_settings: Settings, typed: str
) -> None:
    submit(database)
    assert quick_status(database_settings, typed) is None


@contextmanager
def at_revision(database: Database, revision: str | None) -> Iterator[None]:
    def write(values: list[str]) -> None:
        with database.write() as connection:
            connection.execute(text("DELETE FROM alembic_version"))
            for value in values:
                connection.execute(
                    text("INSERT INTO alembic_version VALUES (:value)"), {"value": value}
                )

    write([] if revision is None else [revision])
    try:
        yield
    finally:
        write([SCHEMA_REVISION])


@pytest.mark.parametrize("revision", ["0001", "9999", None])
def test_another_schema_is_left_to_the_usual_way(
    database: Database, database_settings: Settings, revision: str | None
) -> None:
    job_id = submit(database)
    with at_revision(database, revision):
        assert quick_status(database_settings, job_id) is None
    assert quick_status(database_settings, job_id) is not None


def test_a_postgres_without_a_schema_is_left_to_the_usual_way(
    empty_postgres_url: str, settings: Settings
) -> None:
    assert quick_status(replace(settings, database_url=empty_postgres_url), "7kq2") is None


@pytest.mark.parametrize("flags", [(), ("--json",)])
def test_status_of_a_healthy_ledger_imports_no_sqlalchemy(
    database: Database,
    database_settings: Settings,
    flags: tuple[str, ...],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    job_id = running(database)
    monkeypatch.setenv("TGP_DATABASE_URL", database_settings.effective_database_url)
    shown, modules = run_in_fresh_process(database_settings.home, "status", job_id, *flags)
    assert job_id in shown
    assert "sqlalchemy" not in modules
    assert ("psycopg" in modules) is not database.is_sqlite
