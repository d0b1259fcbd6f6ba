from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

from jobs.database import Database
from jobs.settings import Settings
from jobs.store.reading import job_report, job_reports
from jobs.store.records import PromptOutcome
from jobs.store.reports import JobReport
from tests.ledger import job_count
from tests.unit.cli.conftest import Tgp
from tests.unit.cli.working import claim_next, completed, failed, record, work_off

RunJob = Callable[[Settings, Database, str], JobReport]
DONE = [completed(0), completed(1), completed(2)]


@pytest.fixture
def engine(monkeypatch: pytest.MonkeyPatch) -> Callable[[RunJob], None]:
    """Put a function in the place of the worker's loop."""

    def use(run_job: RunJob) -> None:
        local, log = ModuleType("worker.shards.run_local"), ModuleType("worker.log")
        local.run_job = run_job  # type: ignore[attr-defined]
        log.configure_logging = lambda *_: None  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, "worker.shards.run_local", local)
        monkeypatch.setitem(sys.modules, "worker.log", log)

    return use


def writes(outcomes: list[PromptOutcome]) -> RunJob:
    def run_job(_: Settings, database: Database, job_id: str) -> JobReport:
        work_off(database, job_id, outcomes)
        return job_report(database, job_id)

    return run_job


def interrupted_after_one(_: Settings, database: Database, job_id: str) -> JobReport:
    record(database, claim_next(database, job_id), [completed(0)])
    raise KeyboardInterrupt


def test_the_file_goes_in_and_the_results_come_out(
    tgp: Tgp, prompt_file: Path, engine: Callable[[RunJob], None]
) -> None:
    engine(writes(DONE))
    result = tgp("run", prompt_file, "--model", "tiny-bloom", "--max-new-tokens", "4")
    assert result.exit_code == 0
    assert [json.loads(line)["index"] for line in result.stdout.splitlines()] == [0, 1, 2]
    assert ": 3 of 3 prompts, completed" in result.stderr


def test_a_failed_prompt_makes_it_exit_with_1(
    tgp: Tgp, prompt_file: Path, tmp_path: Path, engine: Callable[[RunJob], None]
) -> None:
    engine(writes([*DONE[:2], failed(2)]))
    path = tmp_path / "out.csv"
    result = tgp("run", prompt_file, "--model", "tiny-bloom", "--format", "csv", "-o", path)
    assert (result.exit_code, result.stdout) == (1, "")
    assert len(path.read_text().splitlines()) == 4


def test_after_ctrl_c_it_says_how_to_go_on_and_can(
    tgp: Tgp,
    prompt_file: Path,
    sqlite_database: Database,
    engine: Callable[[RunJob], None],
) -> None:
    engine(interrupted_after_one)
    result = tgp("run", prompt_file, "--model", "tiny-bloom")
    (job,) = job_reports(sqlite_database)
    assert (result.exit_code, result.stdout) == (130, "")
    assert result.stderr.endswith(f"Go on with: tgp-jobs run --resume {job.id}\n")

    def finish(_: Settings, database: Database, job_id: str) -> JobReport:
        assert job_id == job.id
        return job_report(database, job_id)

    engine(finish)
    assert tgp("run", "--resume", job.id[:5]).exit_code == 130


def test_an_ended_job_is_not_run_again(tgp: Tgp, job_id: str, sqlite_database: Database) -> None:
    work_off(sqlite_database, job_id, DONE)
    result = tgp("run", "--resume", job_id)
    assert result.exit_code == 0
    assert len(result.stdout.splitlines()) == 3
    assert result.stderr == f"job {job_id} has already ended: completed\n"


@pytest.mark.parametrize(
    "arguments",
    [
        (),
        ("prompts.jsonl", "--resume", "abc"),
        ("--resume", "abc", "--model", "tiny-bloom"),
        ("--resume", "abc", "--seed", "1"),
    ],
)
def test_a_file_and_a_job_to_resume_exclude_each_other(
    tgp: Tgp, arguments: tuple[str, ...]
) -> None:
    assert tgp("run", *arguments).exit_code == 2


def test_without_torch_nothing_is_stored(
    tgp: Tgp, prompt_file: Path, sqlite_database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cli.worker_extra.is_installed", lambda _: False)
    result = tgp("run", prompt_file, "--model", "tiny-bloom")
    assert result.exit_code == 1
    assert "pip install -c constraints.txt '.[worker]'" in result.stderr
    assert job_count(sqlite_database) == 0
