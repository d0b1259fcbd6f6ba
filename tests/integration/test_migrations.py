"""The schema that migrations make is the one the program knows, on both databases."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.operations import Operations
from alembic.script import ScriptDirectory
from sqlalchemy import insert, inspect, select, text, update
from sqlalchemy.exc import IntegrityError

from jobs.database import (
    SCHEMA_REVISION,
    Database,
    check_schema,
    connect,
    migrations_folder,
    open_database,
    schema_revision,
    upgrade,
)
from jobs.errors import SchemaError
from jobs.models import UtcDateTime, database_now, metadata, prompts, workers
from jobs.settings import Settings
from jobs.store.reading import job_report, step_report
from jobs.store.results import result_rows
from jobs.store.workers import register_worker
from tests.ledger import run_job, submit

pytestmark = pytest.mark.integration


@pytest.fixture(params=["sqlite", "postgres"])
def empty_settings(request: pytest.FixtureRequest, settings: Settings) -> Settings:
    """Settings whose database has no schema, SQLite, then Postgres."""
    if request.param == "sqlite":
        return settings
    url = request.getfixturevalue("empty_postgres_url")
    return Settings(home=settings.home, database_url=url)


@pytest.fixture
def empty_database(empty_settings: Settings) -> Iterator[Database]:
    database = connect(empty_settings)
    yield database
    database.close()


def same_type(
    _context: Any, _inspected: Any, _column: Any, inspected_type: Any, known_type: Any
) -> bool | None:
    """Let a moment be compared as what it is stored as."""
    if isinstance(known_type, UtcDateTime):
        return type(inspected_type).__visit_name__ not in ("DATETIME", "TIMESTAMP")
    return None


def differences(database: Database) -> list[Any]:
    with database.write() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": same_type})
        return list(compare_metadata(context, metadata))


def test_the_migrated_schema_is_that_of_the_models(empty_database: Database) -> None:
    upgrade(empty_database)
    assert differences(empty_database) == []


def test_waiting_and_running_shards_have_indexes_of_their_own(empty_database: Database) -> None:
    # What the comparison above does not look at: an index of a part of a table.
    upgrade(empty_database)
    # Not the connection for reading, which has looked at the schema before.
    with empty_database.write() as connection:
        where = {
            str(index["name"]): " ".join(map(str, index.get("dialect_options", {}).values()))
            for index in inspect(connection).get_indexes("shards")
        }
    assert "'queued'" in where["ix_shards_queued"]
    assert "'running'" in where["ix_shards_running"]


def test_a_schema_that_differs_is_told_apart(empty_database: Database) -> None:
    # So that the test above can fail: a column of another type, and one too many.
    upgrade(empty_database)
    with empty_database.write() as connection:
        connection.execute(text("DROP TABLE workers"))
        connection.execute(text("CREATE TABLE workers (id INTEGER PRIMARY KEY, extra INTEGER)"))
    assert differences(empty_database)


def test_the_revision_a_command_checks_is_the_newest_script() -> None:
    config = Config()
    config.set_main_option("script_location", str(migrations_folder()))
    assert ScriptDirectory.from_config(config).get_current_head() == SCHEMA_REVISION


def test_a_schema_can_be_taken_down_and_put_up_again(empty_database: Database) -> None:
    upgrade(empty_database)
    config = Config()
    config.set_main_option("script_location", str(migrations_folder()))
    with empty_database.write() as connection:
        config.attributes["connection"] = connection
        command.downgrade(config, "base")
    with empty_database.read() as connection:
        assert inspect(connection).get_table_names() == ["alembic_version"]
    upgrade(empty_database)
    assert differences(empty_database) == []


def test_an_upgrade_that_was_done_is_not_done_again(empty_database: Database) -> None:
    upgrade(empty_database)
    register(empty_database)
    upgrade(empty_database)
    assert schema_revision(empty_database) == SCHEMA_REVISION
    with empty_database.read() as connection:
        assert connection.execute(select(workers.c.id)).scalars().all() == ["w"]


OLD_ROWS = (
    """INSERT INTO jobs (id, model, status, priority, parameters, source_name, content_digest,
       shard_size, total_prompts, created_at)
       VALUES ('abcd2345', 'tiny-bloom', 'running', 'normal', '{}', 'p.jsonl', 'd', 4, 2, :now)""",
    "INSERT INTO prompts (job_id, prompt_index, prompt) VALUES ('abcd2345', 0, 'a')",
    "INSERT INTO prompts (job_id, prompt_index, prompt) VALUES ('abcd2345', 1, 'b')",
    """INSERT INTO shards (job_id, first_index, last_index, status, attempt, crashes, loading,
       load_crashes, completed_prompts, failed_prompts, prompt_tokens, completion_tokens,
       prefill_seconds, decode_seconds, created_at)
       VALUES ('abcd2345', 0, 1, 'queued', 1, 0, false, 0, 1, 0, 3, 5, 0.25, 0.5, :now)""",
    """INSERT INTO micro_batches (job_id, shard_id, worker_id, attempt, device, compute_mode, rows,
       prompt_tokens, completion_tokens, prefill_seconds, decode_seconds, out_of_memory_retries,
       created_at)
       SELECT 'abcd2345', id, 'w', 1, 'cpu', 'llm_int8', 1, 3, 5, 0.25, 0.5, 0, :now FROM shards""",
    """INSERT INTO completions (job_id, prompt_index, shard_id, micro_batch_id, text, finish_reason,
       prompt_tokens, completion_tokens, queued_seconds, prefill_seconds, decode_seconds, attempt,
       worker_id, created_at)
       SELECT 'abcd2345', 0, shard_id, id, 'un', 'stop', 3, 5, 1.5, 0.25, 0.5, 1, 'w', :now
       FROM micro_batches""",
)


def test_a_ledger_of_the_first_version_keeps_its_rows(empty_database: Database) -> None:
    # given a job that the first version left half done
    upgrade(empty_database, "0001")
    with empty_database.write() as connection:
        for statement in OLD_ROWS:
            # Text, as SQLite keeps a moment; Postgres reads it as one.
            moment = {"now": "2026-01-01 00:00:00.000000"}
            connection.execute(text(statement), moment if ":now" in statement else {})
    # when the schema is brought up to date
    upgrade(empty_database)
    # then the result is there, without what nobody measured then
    (row,) = result_rows(empty_database, "abcd2345")
    assert (row.text, row.first_token_seconds, row.logprobs) == ("un", None, None)
    steps = step_report(empty_database, "abcd2345")
    assert (steps.steps, steps.rows, steps.streamed_bytes, steps.link_wait_share) == (
        0,
        None,
        0,
        None,
    )
    # and the rest of the job can be done
    run_job(empty_database, "abcd2345")
    assert job_report(empty_database, "abcd2345").status == "completed"


def test_a_table_that_a_migration_rebuilds_keeps_what_refers_to_it(database: Database) -> None:
    # given a job with its prompts
    submit(database, 4)
    # when a migration rebuilds its table, as SQLite must to alter a column
    with database.migrate() as connection:
        operations = Operations(MigrationContext.configure(connection))
        with operations.batch_alter_table("jobs", recreate="auto") as batch:
            batch.alter_column("source_name", nullable=True)
    # then nothing was deleted with the old one
    with database.read() as connection:
        left = connection.execute(select(prompts.c.prompt_index)).scalars().all()
    assert len(left) == 4
    # and a row must still refer to one that is there
    with database.write() as connection, pytest.raises(IntegrityError):
        connection.execute(insert(prompts).values(job_id="nobody", prompt_index=0))


def test_sqlite_makes_its_schema_on_first_use(settings: Settings) -> None:
    database = open_database(settings)
    assert schema_revision(database) == SCHEMA_REVISION
    database.close()


def test_sqlite_is_private_to_its_owner(settings: Settings) -> None:
    open_database(settings).close()
    assert settings.home.stat().st_mode & 0o077 == 0


def test_postgres_says_how_to_make_its_schema(empty_postgres_url: str, settings: Settings) -> None:
    with pytest.raises(SchemaError, match=r"is empty: run `tgp-jobs db upgrade` once"):
        open_database(Settings(home=settings.home, database_url=empty_postgres_url))


def test_an_old_schema_is_said_to_be_old(postgres_url: str, settings: Settings) -> None:
    database = connect(Settings(home=settings.home, database_url=postgres_url))
    at_revision(database, "0000")
    with pytest.raises(SchemaError, match=r"is at 0000, older than .*: run `tgp-jobs db upgrade`"):
        check_schema(database, upgrade_sqlite=True)
    database.close()


def test_a_newer_schema_is_refused(database: Database) -> None:
    at_revision(database, "9999")
    with pytest.raises(SchemaError) as refusal:
        check_schema(database, upgrade_sqlite=True)
    assert refusal.value.message == (
        f"the database schema (9999) is newer than this program ({SCHEMA_REVISION}): "
        "upgrade tgp-jobs"
    )
    assert schema_revision(database) == "9999"


def test_a_newer_schema_is_refused_by_an_upgrade_too(database: Database) -> None:
    at_revision(database, "9999")
    with pytest.raises(SchemaError, match="is newer than this program"):
        upgrade(database)


UPGRADE = """
import sys
from pathlib import Path
from jobs.database import connect, upgrade, open_database
from jobs.settings import Settings
url = sys.argv[2] or None
settings = Settings(home=Path(sys.argv[1]), database_url=url)
import alembic.command, alembic.config  # so that both begin together
print("ready", flush=True)
sys.stdin.readline()
if url is None:
    open_database(settings).close()
else:
    database = connect(settings)
    upgrade(database)
    database.close()
"""


def test_processes_that_upgrade_at_once_wait_for_each_other(empty_settings: Settings) -> None:
    # given three processes before an empty database
    arguments = [str(empty_settings.home), empty_settings.database_url or ""]
    processes = [
        subprocess.Popen(
            [sys.executable, "-W", "error", "-c", UPGRADE, *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for _ in range(3)
    ]
    for process in processes:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
    # when all of them begin
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
    ended = [process.communicate(timeout=60) for process in processes]
    # then each of them succeeds
    assert [
        (process.returncode, err) for process, (_, err) in zip(processes, ended, strict=True)
    ] == [(0, "")] * 3
    database = connect(empty_settings)
    assert differences(database) == []
    database.close()


def test_the_database_s_clock_agrees_with_ours(database: Database) -> None:
    with database.read() as connection:
        now = connection.execute(select(database_now())).scalar_one()
    assert abs(now - datetime.now(UTC)) < timedelta(seconds=5)


@pytest.mark.parametrize("offset", [3600.0, -3600.0, 0.25, 90_000.0])
def test_the_database_s_clock_can_be_offset(database: Database, offset: float) -> None:
    with database.read() as connection:
        row = connection.execute(
            select(database_now().label("now"), database_now(offset).label("then"))
        ).one()
    assert (row.then - row.now).total_seconds() == pytest.approx(offset, abs=0.01)


def test_the_offset_of_one_statement_is_not_that_of_the_next(database: Database) -> None:
    # Statements are compiled once, and must not keep the first one's offset.
    with database.read() as connection:
        later = [
            connection.execute(select(database_now(offset))).scalar_one() for offset in (0.0, 500.0)
        ]
    assert (later[1] - later[0]).total_seconds() == pytest.approx(500, abs=5)


def register(database: Database) -> None:
    register_worker(database, worker_id="w", hostname="box", process=1, version="0", models=["m"])


def test_a_moment_comes_back_aware_and_in_utc(database: Database) -> None:
    # given a moment in another zone
    register(database)
    moment = datetime(2026, 7, 1, 12, 30, 15, 250_000, tzinfo=timezone(timedelta(hours=2)))
    with database.write() as connection:
        connection.execute(update(workers).values(started_at=moment))
    with database.read() as connection:
        stored = connection.execute(select(workers.c.started_at)).scalar_one()
    assert stored == moment
    assert stored.utcoffset() == timedelta(0)


def test_moments_of_the_clock_and_of_ours_compare(database: Database) -> None:
    # given a row whose moment Python wrote, an hour from now
    register(database)
    with database.write() as connection:
        connection.execute(
            update(workers).values(stopped_at=datetime.now(UTC) + timedelta(hours=1))
        )
    # then the database's clock is before it, and an offset of two hours is not
    with database.read() as connection:
        before, after = connection.execute(
            select(
                workers.c.stopped_at > database_now(), workers.c.stopped_at < database_now(7200.0)
            )
        ).one()
    assert (bool(before), bool(after)) == (True, True)


def at_revision(database: Database, revision: str) -> None:
    with database.write() as connection:
        connection.execute(
            text("UPDATE alembic_version SET version_num = :revision"), {"revision": revision}
        )
