from __future__ import annotations

import json

from jobs.database import Database
from jobs.store.control import cancel_job
from jobs.store.leases import fail_job
from jobs.store.reading import job_report
from tests.unit.cli.conftest import Tgp
from tests.unit.cli.working import claim_next, completed, failed, work_off

ALL_DONE = [completed(0), completed(1), completed(2)]
TWO_FAILED = [completed(0), failed(1), failed(2)]


class TestCancel:
    def test_a_live_job_ends(self, tgp: Tgp, job_id: str, sqlite_database: Database) -> None:
        result = tgp("cancel", job_id[:5])
        assert result.stdout == f"job {job_id} is cancelled; 0 of 3 prompts have results\n"
        assert result.exit_code == 0
        assert job_report(sqlite_database, job_id).status == "cancelled"

    def test_the_second_time_is_no_error(self, tgp: Tgp, job_id: str) -> None:
        first = json.loads(tgp("cancel", job_id, "--json").stdout)
        second = tgp("cancel", job_id, "--json")
        assert first == {"id": job_id, "status": "cancelled", "cancelled": True}
        assert json.loads(second.stdout) == first | {"cancelled": False}
        assert second.exit_code == 0

    def test_a_completed_job_cannot_be_cancelled(
        self, tgp: Tgp, job_id: str, sqlite_database: Database
    ) -> None:
        work_off(sqlite_database, job_id, ALL_DONE)
        result = tgp("cancel", job_id)
        assert result.exit_code == 2
        assert result.stderr == (
            f"Error: job {job_id} has already completed; nothing was cancelled\n"
        )


class TestRetry:
    def test_failed_prompts_are_queued_again(
        self, tgp: Tgp, job_id: str, sqlite_database: Database
    ) -> None:
        work_off(sqlite_database, job_id, TWO_FAILED)
        result = tgp("retry", job_id[:5])
        assert result.stdout == f"job {job_id}: 2 prompts queued again\n"
        assert result.stderr == "no worker is running yet: start one with tgp-jobs worker\n"
        job = job_report(sqlite_database, job_id)
        assert (job.status, job.completed, job.pending) == ("queued", 1, 2)

    def test_the_document_says_how_many(
        self, tgp: Tgp, job_id: str, sqlite_database: Database
    ) -> None:
        fail_job(sqlite_database, claim_next(sqlite_database, job_id), code="x", message="y")
        document = json.loads(tgp("retry", job_id, "--json").stdout)
        assert document == {"id": job_id, "queued_again": 3, "published": False}

    def test_a_job_without_failures_is_left_alone(
        self, tgp: Tgp, job_id: str, sqlite_database: Database
    ) -> None:
        work_off(sqlite_database, job_id, ALL_DONE)
        result = tgp("retry", job_id)
        assert result.stdout == f"job {job_id} has no failed prompts; nothing was queued\n"
        assert result.exit_code == 0

    def test_a_live_job_is_refused(self, tgp: Tgp, job_id: str) -> None:
        result = tgp("retry", job_id)
        assert result.exit_code == 2
        assert f"job {job_id} is still queued" in result.stderr

    def test_a_cancelled_job_is_refused(
        self, tgp: Tgp, job_id: str, sqlite_database: Database
    ) -> None:
        cancel_job(sqlite_database, job_id)
        result = tgp("retry", job_id)
        assert result.exit_code == 2
        assert f"job {job_id} was cancelled" in result.stderr
