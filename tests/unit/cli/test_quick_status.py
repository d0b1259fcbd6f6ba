"""Whatever keeps `status` from the quick way, it says and does what it always did."""

from __future__ import annotations

import json
import sqlite3
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy.engine import make_url

from jobs.database import Database, schema_revision, upgrade
from jobs.schema import SCHEMA_REVISION
from jobs.settings import Settings
from jobs.store import quick_status as quick
from tests.unit.cli.conftest import Tgp
from tests.unit.cli.working import claim_next, completed, failed, record


@pytest.fixture
def ledger_file(home: Path) -> Path:
    return home / "tgp-jobs.db"


def execute(path: Path, *statements: str) -> None:
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        for statement in statements:
            connection.execute(statement)


@pytest.mark.parametrize("flags", [(), ("--json",)])
def test_the_usual_way_shows_the_same(
    tgp: Tgp,
    job_id: str,
    sqlite_database: Database,
    flags: tuple[str, ...],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    claim = claim_next(sqlite_database, job_id)
    record(sqlite_database, claim, [completed(0), failed(2)], steps=3, row_steps=4, row_capacity=2)
    shown = tgp("status", job_id, *flags).stdout
    monkeypatch.setattr("cli.commands.status.quick_status", lambda *_: None)
    assert tgp("status", job_id, *flags).stdout == shown


def test_watching_goes_the_usual_way(
    tgp: Tgp, job_id: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    tgp("cancel", job_id)
    asked: list[object] = []
    monkeypatch.setattr("cli.commands.status.quick_status", lambda *given: asked.append(given))
    assert "cancelled" in tgp("status", job_id, "--watch").stdout
    assert asked == []


def test_without_a_ledger_one_is_made_and_holds_no_job(tgp: Tgp, ledger_file: Path) -> None:
    result = tgp("status", "7kq2")
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr == "Error: no job has the id '7kq2': `tgp-jobs list` shows the jobs\n"
    assert ledger_file.is_file()


def test_an_older_ledger_is_upgraded_on_the_way(
    tgp: Tgp, settings: Settings, ledger_file: Path
) -> None:
    # given a ledger of the first version, with a job
    settings.home.mkdir()
    old = Database(settings.effective_database_url)
    upgrade(old, "0001")
    old.close()
    job = {"id": "7kq2m9xd", "model": "m", "status": "queued", "priority": "low"}
    job |= {"parameters": "{}", "source_name": "f", "content_digest": "d", "shard_size": "4"}
    job |= {"total_prompts": "0", "created_at": "2026-01-01 00:00:00.000000"}
    quoted = ", ".join(f"'{value}'" for value in job.values())
    execute(ledger_file, f"INSERT INTO jobs ({', '.join(job)}) VALUES ({quoted})")
    result = tgp("status", "7kq", "--json")
    assert (result.exit_code, json.loads(result.stdout)["id"]) == (0, "7kq2m9xd")
    new = Database(settings.effective_database_url)
    assert schema_revision(new) == SCHEMA_REVISION
    new.close()


def test_a_newer_ledger_is_refused(tgp: Tgp, job_id: str, ledger_file: Path) -> None:
    execute(ledger_file, "UPDATE alembic_version SET version_num = '9999'")
    result = tgp("status", job_id)
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr == (
        f"Error: the database schema (9999) is newer than this program ({SCHEMA_REVISION}): "
        "upgrade tgp-jobs\n"
    )


def test_a_locked_ledger_is_said_to_be_locked(
    tgp: Tgp, job_id: str, ledger_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(quick, "SQLITE_PATIENCE_SECONDS", 0.05)
    for patience in ("BUSY_TIMEOUT_SECONDS", "WRITE_AHEAD_PATIENCE_SECONDS"):
        monkeypatch.setattr(f"jobs.database.{patience}", 0.05)
    # given somebody who keeps all others out
    with closing(sqlite3.connect(ledger_file, isolation_level=None)) as other:
        for statement in (
            "PRAGMA locking_mode=EXCLUSIVE",
            "BEGIN EXCLUSIVE",
            "DELETE FROM workers",
        ):
            other.execute(statement)
        result = tgp("status", job_id)
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr == (
        f"Error: the database sqlite:///{ledger_file} failed: database is locked; "
        "`tgp-jobs doctor` checks it\n"
    )
    # when he has gone
    assert tgp("status", job_id).exit_code == 0


def test_a_file_that_is_no_ledger_is_said_to_be_none(tgp: Tgp, ledger_file: Path) -> None:
    ledger_file.parent.mkdir()
    ledger_file.write_text("not a database " * 100)
    result = tgp("status", "7kq2")
    assert (result.exit_code, result.stdout) == (1, "")
    assert "file is not a database; `tgp-jobs doctor` checks it\n" in result.stderr


@pytest.mark.parametrize("flags", [(), ("--json",)])
def test_a_postgres_that_does_not_answer_is_told_of_without_its_password(
    tgp: Tgp, flags: tuple[str, ...]
) -> None:
    url = "postgresql://me:hunter2@127.0.0.1:1/ledger?sslpassword=hunter2"
    result = tgp("status", "7kq2", "--database-url", url, *flags)
    assert (result.exit_code, result.stdout) == (1, "")
    assert "the database postgresql+psycopg://me:***@127.0.0.1:1/ledger" in result.stderr
    assert "hunter2" not in result.output


def test_several_jobs_of_one_prefix_are_named(
    tgp: Tgp, prompt_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ids = iter(("abcdefgh", "abcxyzwq"))
    monkeypatch.setattr("jobs.store.submission.new_job_id", lambda: next(ids))
    for _ in range(2):
        tgp("submit", prompt_file, "--model", "tiny-bloom")
    result = tgp("status", "abc", "--json")
    assert (result.exit_code, result.stdout) == (2, "")
    assert json.loads(result.stderr)["error"] == {
        "code": "ambiguous_job",
        "message": "'abc' could be abcdefgh, abcxyzwq: give more letters of the id",
    }


def test_a_look_creates_nothing(settings: Settings) -> None:
    assert quick.quick_status(settings, "7kq2") is None
    assert not settings.home.exists()
    settings.home.mkdir()
    assert quick.quick_status(settings, "7kq2") is None
    assert list(settings.home.iterdir()) == []


def test_a_look_leaves_no_log_behind(tgp: Tgp, job_id: str, settings: Settings) -> None:
    # given a ledger that nobody else has open
    before = sorted(settings.home.iterdir())
    assert quick.quick_status(settings, job_id) is not None
    assert sorted(settings.home.iterdir()) == before


def test_a_look_keeps_no_writer_waiting_and_sees_what_was_committed(
    tgp: Tgp, job_id: str, sqlite_database: Database, settings: Settings
) -> None:
    with sqlite_database.write() as connection:
        connection.exec_driver_sql("UPDATE jobs SET name = 'not yet'")
        read = quick.quick_status(settings, job_id)
    assert read is not None
    assert read[0].name is None


@pytest.mark.parametrize("name", ["ü", "a#b", "a&b=c", "a'b", "a+b"])
def test_a_path_is_taken_as_it_is(
    tgp: Tgp, prompt_file: Path, settings: Settings, tmp_path: Path, name: str
) -> None:
    (tmp_path / name).mkdir()
    url = f"sqlite:///{tmp_path / name / 'x.db'}"
    job_id = tgp(
        "submit", prompt_file, "--model", "tiny-bloom", "--database-url", url
    ).stdout.strip()
    read = quick.quick_status(replace(settings, database_url=url), job_id)
    assert read is not None
    assert read[0].id == job_id


UNDERSTOOD = (
    "postgresql+psycopg://me@box/ledger",
    "postgresql+psycopg://me:secret@box:5433/ledger",
    "postgresql+psycopg://me:@box/ledger",
    "postgresql+psycopg:///ledger",
    "postgresql+psycopg://box.example.org/led-ger_2",
    "postgresql+psycopg://m%40e:p%3A%2F%40+w%25@box/ledger",
    "postgresql+psycopg://me:a:b@box/ledger",
    "postgresql+psycopg://me@/ledger?host=/run/postgresql",
    "postgresql+psycopg://me@box/ledger?sslmode=verify-full&sslrootcert=/a%20b&empty=",
)
LEFT_ALONE = (
    "postgresql+psycopg://me@box",
    "postgresql+psycopg://me@box/",
    "postgresql+psycopg://me@[::1]/ledger",
    "postgresql+psycopg://me@a,b/ledger",
    "postgresql+psycopg://me:1/x@box/ledger",
    "postgresql+psycopg://me:a?b@box/ledger",
    "postgresql+psycopg://me:a#b@box/ledger",
    "postgresql+psycopg://me@b%6Fx/ledger",
    "postgresql+psycopg://me@box/led%67er",
    "postgresql+psycopg://me@box/ledger?host=other",
    "postgresql+psycopg://me@/ledger?host=box:5433",
    "postgresql+psycopg://me@/ledger?host=a&host=b",
    "postgresql+psycopg://me@/ledger?host=/a&host=/b",
    "postgresql+psycopg://me@/ledger?host=/a:1",
    "postgresql+psycopg://me@box/ledger?sslmode=disable&sslmode=require",
    "postgresql+psycopg://me@/ledger?host=/a,/b",
    "postgresql+psycopg://me@box/ledger?user=other",
    "postgresql+psycopg://me@box/ledger?connect_timeout=9",
    "postgresql+psycopg2://me@box/ledger",
    "sqlite:///relative.db",
    "sqlite:///:memory:",
    "sqlite://",
    "sqlite:////tmp/x.db?mode=memory",
    "sqlite:////tmp/x%2Fdb",
)


def connections(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """What the drivers are asked for; they do not answer."""
    asked: list[dict[str, Any]] = []

    def connect(*given: Any, **options: Any) -> None:
        asked.append({"given": given, **options} if given else options)
        raise OSError

    monkeypatch.setattr("psycopg.connect", connect)
    monkeypatch.setattr("sqlite3.connect", connect)
    return asked


def connect_options_of_sqlalchemy(url: str) -> dict[str, Any]:
    dialect: Any = make_url(url).get_dialect()
    options: dict[str, Any] = dialect().create_connect_args(make_url(url))[1]
    return options


@pytest.mark.parametrize("url", UNDERSTOOD)
def test_a_url_means_what_it_means_to_sqlalchemy(
    settings: Settings, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = connections(monkeypatch)
    assert quick.quick_status(replace(settings, database_url=url), "7kq2") is None
    (options,) = asked
    for ours in ("connect_timeout", "autocommit", "row_factory"):
        del options[ours]
    theirs = connect_options_of_sqlalchemy(url)
    assert {name: str(value) for name, value in options.items()} == {
        name: str(value) for name, value in theirs.items()
    }


@pytest.mark.parametrize("url", LEFT_ALONE)
def test_an_unusual_url_is_left_to_sqlalchemy(
    settings: Settings, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = connections(monkeypatch)
    assert quick.quick_status(replace(settings, database_url=url), "7kq2") is None
    assert asked == []
