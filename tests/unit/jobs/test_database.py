"""What cannot be used as a database is refused in words, and without its password."""

from __future__ import annotations

from dataclasses import replace

import pytest
from sqlalchemy import insert, text
from sqlalchemy.exc import IntegrityError

from jobs.database import Database, connect, open_database
from jobs.errors import DatabaseUnavailableError, SettingsError
from jobs.models import prompts
from jobs.settings import Settings


@pytest.mark.parametrize("url", ["sqlite://", "sqlite:///:memory:"])
def test_a_database_in_memory_is_refused(settings: Settings, url: str) -> None:
    with pytest.raises(SettingsError, match="SQLite needs a file"):
        connect(replace(settings, database_url=url))


def test_a_database_in_a_folder_that_is_not_there_is_refused(settings: Settings) -> None:
    with pytest.raises(SettingsError, match=r"^database_url: there is no folder /not/here$"):
        connect(replace(settings, database_url="sqlite:////not/here/jobs.db"))


def test_a_file_that_is_no_database_is_said_to_be_none(settings: Settings) -> None:
    # given a text where the database should be
    settings.home.mkdir()
    (settings.home / "tgp-jobs.db").write_text("not a database " * 100)
    with pytest.raises(DatabaseUnavailableError, match="file is not a database; `tgp-jobs doctor`"):
        open_database(settings)


def test_a_database_that_does_not_answer_is_said_not_to_without_its_password() -> None:
    database = Database("postgresql+psycopg://me:hunter2@127.0.0.1:1/db?sslpassword=hunter2")
    with pytest.raises(DatabaseUnavailableError) as refusal, database.read():
        pass
    assert refusal.value.message.startswith("the database postgresql+psycopg://me:***@127.0.0.1:1")
    assert "hunter2" not in refusal.value.message


def test_a_statement_s_own_fault_is_not_called_the_database_s(sqlite_database: Database) -> None:
    with pytest.raises(IntegrityError), sqlite_database.write() as connection:
        connection.execute(insert(prompts).values(job_id="nobody", prompt_index=0))


def test_a_reader_cannot_keep_a_writer_waiting(sqlite_database: Database) -> None:
    # given a reader in the middle of its transaction
    with sqlite_database.read() as reader:
        reader.execute(text("SELECT count(*) FROM jobs")).all()
        # then a writer commits at once, and the reader still sees what it began with
        with sqlite_database.write() as writer:
            writer.execute(text("UPDATE alembic_version SET version_num = 'x'"))
        assert reader.execute(text("SELECT version_num FROM alembic_version")).scalar() != "x"
