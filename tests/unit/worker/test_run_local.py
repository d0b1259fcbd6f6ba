"""A job in this process ends, or can be taken up again."""

from __future__ import annotations

import signal

import pytest

from jobs.database import Database
from jobs.errors import UnknownModelError
from jobs.settings import Settings
from jobs.store import reading
from jobs.store.reports import JobReport
from jobs.store.workers import live_workers
from tests.ledger import results_of, submit
from worker.shards.run_local import run_job


@pytest.fixture
def with_null_model(settings: Settings) -> Settings:
    settings.home.mkdir(parents=True, exist_ok=True)
    (settings.home / "catalogue.toml").write_text('[models.null]\nengine = "null"\n')
    return settings


def test_a_job_is_worked_on_until_it_has_ended(
    with_null_model: Settings, sqlite_database: Database
) -> None:
    job_id = submit(sqlite_database, 10, model="null")
    heard: list[JobReport] = []
    report = run_job(with_null_model, sqlite_database, job_id, on_progress=heard.append)
    assert (report.status, report.completed) == ("completed", 10)
    assert [each.shards_completed for each in heard] == [0, 2, 3]
    assert live_workers(sqlite_database) == [], "it does not stay behind as a worker"


def test_an_interrupted_job_is_taken_up_where_it_stood(
    with_null_model: Settings, sqlite_database: Database
) -> None:
    # given a run that Ctrl-C ends after its first two shards, which share a batch
    job_id = submit(sqlite_database, 12, model="null")
    before = signal.getsignal(signal.SIGINT)

    def interrupt(report: JobReport) -> None:
        if report.shards_completed == 2:
            signal.raise_signal(signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        run_job(with_null_model, sqlite_database, job_id, on_progress=interrupt)
    # then what was finished is kept, and Ctrl-C means again what it meant
    assert results_of(sqlite_database, job_id) == list(range(8))
    assert signal.getsignal(signal.SIGINT) is before
    # and another run completes it
    assert run_job(with_null_model, sqlite_database, job_id).completed == 12


def test_no_other_job_s_shard_joins(with_null_model: Settings, sqlite_database: Database) -> None:
    # given a job that is older and has room in a batch beside the one that is run
    other = submit(sqlite_database, 2, model="null")
    job_id = submit(sqlite_database, 6, model="null")
    assert run_job(with_null_model, sqlite_database, job_id).completed == 6
    assert reading.job_report(sqlite_database, other).status == "queued"


def test_a_job_of_an_unknown_model_is_refused(
    with_null_model: Settings, sqlite_database: Database
) -> None:
    job_id = submit(sqlite_database, model="somebody-elses")
    with pytest.raises(UnknownModelError, match="'somebody-elses'"):
        run_job(with_null_model, sqlite_database, job_id)
    assert reading.job_report(sqlite_database, job_id).status == "queued"
