from __future__ import annotations

import json
import re
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from jobs.database import Database
from jobs.store.leases import fail_job
from jobs.store.workers import register_worker, worker_loaded, worker_loading
from tests.unit.cli.conftest import Tgp
from tests.unit.cli.working import claim_next, completed, failed, record, work_off

TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z")


def document_of(tgp: Tgp, job_id: str) -> dict[str, Any]:
    document: dict[str, Any] = json.loads(tgp("status", job_id, "--json").stdout)
    return document


def test_a_new_jobs_document_is_exactly_this(tgp: Tgp, job_id: str, prompt_file: Path) -> None:
    document = document_of(tgp, job_id)
    assert TIME.fullmatch(document["created_at"])
    assert document == {
        "id": job_id,
        "name": None,
        "model": "tiny-bloom",
        "status": "queued",
        "priority": "normal",
        "counts": {"total": 3, "completed": 0, "failed": 0, "pending": 3},
        "tokens": {"prompt": 0, "completion": 0},
        "tokens_per_second": None,
        "eta_seconds": None,
        "seconds": {"prefill": 0.0, "decode": 0.0},
        "shards": {"total": 1, "completed": 0},
        "model_state": {
            "state": "not loaded",
            "worker": None,
            "stage": None,
            "done": None,
            "total": None,
            "unit": None,
            "load_seconds": None,
        },
        "parameters": {},
        "source": str(prompt_file),
        "error": None,
        "created_at": document["created_at"],
        "started_at": None,
        "finished_at": None,
        "advice": "no worker is running: start one with tgp-jobs worker",
        "steps": {
            "count": 0,
            "mean_rows": None,
            "mean_row_capacity": None,
            "streamed_bytes": 0,
            "link_wait_seconds": 0.0,
            "compute_seconds": 0.0,
            "link_wait_seconds_per_step": None,
            "compute_seconds_per_step": None,
        },
    }


def test_counts_and_tokens_grow_as_a_worker_writes(
    tgp: Tgp, job_id: str, sqlite_database: Database
) -> None:
    record(sqlite_database, claim_next(sqlite_database, job_id), [completed(0), failed(2)])
    document = document_of(tgp, job_id)
    assert document["status"] == "running"
    assert document["counts"] == {"total": 3, "completed": 1, "failed": 1, "pending": 1}
    assert document["tokens"] == {"prompt": 3, "completion": 5}
    assert document["seconds"] == {"prefill": 0.25, "decode": 0.5}
    assert document["tokens_per_second"] == pytest.approx(5 / 0.75, rel=0.05)
    assert document["eta_seconds"] == pytest.approx(0.75 / 2, rel=0.05)
    assert TIME.fullmatch(document["started_at"])


def test_what_the_steps_took_is_summed_over_micro_batches(
    tgp: Tgp, job_id: str, sqlite_database: Database
) -> None:
    # given a window of 10 steps with 2 of 4 rows, and one of 30 with 4 of 8
    claim = claim_next(sqlite_database, job_id)
    for index, (steps, rows, room) in enumerate([(10, 2, 4), (30, 4, 8)]):
        record(
            sqlite_database,
            claim,
            [completed(index)],
            steps=steps,
            row_steps=steps * rows,
            row_capacity=room,
            streamed_bytes=2**30,
            link_wait_seconds=6.2,
            compute_seconds=3.8,
        )
    # then averages weigh a window by its steps
    assert document_of(tgp, job_id)["steps"] == {
        "count": 40,
        "mean_rows": 3.5,
        "mean_row_capacity": 7.0,
        "streamed_bytes": 2 * 2**30,
        "link_wait_seconds": 12.4,
        "compute_seconds": 7.6,
        "link_wait_seconds_per_step": 0.31,
        "compute_seconds_per_step": 0.19,
    }
    shown = tgp("status", job_id).stdout
    assert "40, 3.5 of 7.0 rows alive on average, 2.00 GiB of weights streamed" in shown
    assert re.search(r"^Limited by +waiting for weights 62 % of the time$", shown, re.MULTILINE)


def test_a_model_that_never_waits_is_limited_by_computing(
    tgp: Tgp, job_id: str, sqlite_database: Database
) -> None:
    claim = claim_next(sqlite_database, job_id)
    took = {"steps": 5, "row_steps": 5, "row_capacity": 1, "compute_seconds": 2.0}
    record(sqlite_database, claim, [completed(0)], **took)
    assert "computing 100 % of the time" in tgp("status", job_id).stdout


def test_steps_are_not_shown_before_there_are_any(tgp: Tgp, job_id: str) -> None:
    shown = tgp("status", job_id).stdout
    assert "Steps" not in shown
    assert "Limited by" not in shown


def test_a_failed_job_says_why(tgp: Tgp, job_id: str, sqlite_database: Database) -> None:
    claim = claim_next(sqlite_database, job_id)
    fail_job(sqlite_database, claim, code="model_load_failed", message="no such\x1b[31m file")
    document = document_of(tgp, job_id)
    assert document["error"] == {
        "code": "model_load_failed",
        "message": "no such\x1b[31m file",
    }
    shown = tgp("status", job_id).stdout
    assert "failed: model_load_failed" in shown
    assert "no such\\x1b[31m file" in shown


def test_a_job_whose_model_no_live_worker_serves_says_what_to_do(
    tgp: Tgp, job_id: str, sqlite_database: Database
) -> None:
    # given a worker that was started with another catalogue
    register_worker(
        sqlite_database, worker_id="w", hostname="h", process=1, version="1", models=["other"]
    )
    advice = "no live worker serves tiny-bloom: restart a worker whose catalogue has it"
    # then status says so in both forms, until a worker serves the model
    assert document_of(tgp, job_id)["advice"].startswith(advice)
    assert advice in tgp("status", job_id).stdout
    register_worker(
        sqlite_database, worker_id="v", hostname="h", process=2, version="1", models=["tiny-bloom"]
    )
    assert document_of(tgp, job_id)["advice"] is None
    assert "Waits" not in tgp("status", job_id).stdout


def test_the_models_load_is_shown(tgp: Tgp, job_id: str, sqlite_database: Database) -> None:
    register_worker(
        sqlite_database, worker_id="w", hostname="h", process=1, version="1", models=["tiny-bloom"]
    )
    worker_loading(
        sqlite_database, "w", model="tiny-bloom", stage="quantise", done=3, total=12, unit="blocks"
    )
    assert document_of(tgp, job_id)["model_state"] == {
        "state": "loading",
        "worker": "w",
        "stage": "quantise",
        "done": 3.0,
        "total": 12.0,
        "unit": "blocks",
        "load_seconds": None,
    }
    assert "tiny-bloom, loading: quantise 3 of 12 blocks" in tgp("status", job_id).stdout
    worker_loaded(sqlite_database, "w", model="tiny-bloom", device="cpu", load_seconds=75.0)
    assert "tiny-bloom, loaded in 1 min 15 s" in tgp("status", job_id).stdout


def test_people_see_names_and_values(tgp: Tgp, job_id: str) -> None:
    result = tgp("status", job_id)
    assert result.exit_code == 0
    assert f"Job         {job_id}\nStatus      queued\n" in result.stdout
    assert "Prompts     0 of 3 completed, 0 failed, 3 pending\n" in result.stdout


def test_a_prefix_of_the_id_is_enough(tgp: Tgp, job_id: str) -> None:
    assert document_of(tgp, job_id[:3])["id"] == job_id


@pytest.mark.parametrize("unknown", ["zzzzzzzzz", "", "%", "\udcff", "é"])
def test_an_id_of_no_job_is_refused(tgp: Tgp, job_id: str, unknown: str) -> None:
    result = tgp("status", unknown)
    assert result.exit_code == 2
    assert "`tgp-jobs list` shows the jobs" in result.stderr


def test_an_ambiguous_prefix_names_the_jobs(
    tgp: Tgp, prompt_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ids = iter(("abcdefgh", "abcxyzwq"))
    monkeypatch.setattr("jobs.store.submission.new_job_id", lambda: next(ids))
    for _ in range(2):
        tgp("submit", prompt_file, "--model", "tiny-bloom")
    result = tgp("status", "abc")
    assert result.exit_code == 2
    assert "abcdefgh, abcxyzwq: give more letters" in result.stderr


def test_without_a_ledger_one_is_made_and_holds_no_job(tgp: Tgp, home: Path) -> None:
    result = tgp("status", "7kq2")
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr == "Error: no job has the id '7kq2': `tgp-jobs list` shows the jobs\n"
    assert (home / "tgp-jobs.db").is_file()


def test_a_locked_ledger_is_said_to_be_locked(
    tgp: Tgp, job_id: str, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for patience in ("BUSY_TIMEOUT_SECONDS", "WRITE_AHEAD_PATIENCE_SECONDS"):
        monkeypatch.setattr(f"jobs.database.{patience}", 0.05)
    ledger = home / "tgp-jobs.db"
    # given a process that keeps all others out
    with closing(sqlite3.connect(ledger, isolation_level=None)) as other:
        for statement in (
            "PRAGMA locking_mode=EXCLUSIVE",
            "BEGIN EXCLUSIVE",
            "DELETE FROM workers",
        ):
            other.execute(statement)
        result = tgp("status", job_id)
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr == (
        f"Error: the database sqlite:///{ledger} failed: database is locked; "
        "`tgp-jobs doctor` checks it\n"
    )
    # when it has gone
    assert tgp("status", job_id).exit_code == 0


def test_a_look_keeps_no_writer_waiting_and_sees_what_was_committed(
    tgp: Tgp, job_id: str, sqlite_database: Database
) -> None:
    with sqlite_database.write() as connection:
        connection.exec_driver_sql("UPDATE jobs SET name = 'not yet'")
        assert document_of(tgp, job_id)["name"] is None


@pytest.mark.parametrize("flags", [(), ("--json",)])
def test_a_postgres_that_does_not_answer_is_told_of_without_its_password(
    tgp: Tgp, flags: tuple[str, ...]
) -> None:
    url = "postgresql://me:hunter2@127.0.0.1:1/ledger?sslpassword=hunter2"
    result = tgp("status", "7kq2", "--database-url", url, *flags)
    assert (result.exit_code, result.stdout) == (1, "")
    assert "the database postgresql+psycopg://me:***@127.0.0.1:1/ledger" in result.stderr
    assert "hunter2" not in result.output


@pytest.mark.parametrize(
    ("outcomes", "code"),
    [([completed(0), completed(1), completed(2)], 0), ([completed(0), completed(1), failed(2)], 1)],
)
def test_watching_an_ended_job_tells_how_it_ended(
    tgp: Tgp, job_id: str, sqlite_database: Database, outcomes: list[Any], code: int
) -> None:
    work_off(sqlite_database, job_id, outcomes)
    result = tgp("status", job_id, "--watch", "--json")
    assert result.exit_code == code
    assert json.loads(result.stdout)["status"] == "completed"
    assert f"job {job_id}: 3 of 3 prompts, completed" in result.stderr


def test_without_watching_a_failed_prompt_is_no_failure_of_the_command(
    tgp: Tgp, job_id: str, sqlite_database: Database
) -> None:
    work_off(sqlite_database, job_id, [completed(0), completed(1), failed(2)])
    assert tgp("status", job_id).exit_code == 0


class TestList:
    def test_it_is_an_array_of_what_status_prints_but_for_steps_and_advice(
        self, tgp: Tgp, job_id: str
    ) -> None:
        # Summing the micro-batches of every job would read most of the ledger.
        document = document_of(tgp, job_id)
        del document["steps"], document["advice"]
        assert json.loads(tgp("list", "--json").stdout) == [document]

    def test_no_jobs_are_an_empty_array(self, tgp: Tgp) -> None:
        assert tgp("list", "--json").stdout == "[]\n"

    def test_no_jobs_are_said_so_on_stderr(self, tgp: Tgp) -> None:
        result = tgp("list")
        assert (result.stdout, result.stderr) == ("", "no jobs\n")

    def test_the_status_and_the_limit_choose(
        self, tgp: Tgp, job_id: str, prompt_file: Path, sqlite_database: Database
    ) -> None:
        work_off(sqlite_database, job_id, [completed(0), completed(1), completed(2)])
        for _ in range(2):
            tgp("submit", prompt_file, "--model", "tiny-bloom")
        done = json.loads(tgp("list", "--status", "completed", "--json").stdout)
        assert [each["id"] for each in done] == [job_id]
        limited = tgp("list", "--limit", "2", "--json")
        assert len(json.loads(limited.stdout)) == 2
        assert limited.stderr == "these are the newest 2; --limit shows more\n"

    def test_a_name_is_shown_as_it_is_and_without_colours(
        self, tgp: Tgp, prompt_file: Path
    ) -> None:
        tgp("submit", prompt_file, "--model", "tiny-bloom", "--name", "[red]über[/]")
        shown = tgp("list").stdout
        assert "[red]über[/]" in shown
        assert "\x1b" not in shown
