"""Connections: one way to write, one way to read, on SQLite and on Postgres."""

from __future__ import annotations

import os
import sqlite3
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, Engine, create_engine, event, inspect, text
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import (
    ArgumentError,
    DataError,
    DBAPIError,
    IntegrityError,
    ProgrammingError,
)
from sqlalchemy.pool import NullPool

from jobs.errors import DatabaseUnavailableError, SchemaError, SettingsError
from jobs.packaged import packaged_folder
from jobs.settings import Settings, make_home, redact_url

# The newest migration in alembic/versions; a test holds the two together, so
# that a command can tell an old schema without importing alembic (0.2 s).
SCHEMA_REVISION = "0003"
# How long a writer waits for another before it gives up, on SQLite.
BUSY_TIMEOUT_SECONDS = 60.0
WRITE_AHEAD_PATIENCE_SECONDS = 10.0
WRITE_AHEAD_RETRY_SECONDS = 0.02
# SQLSTATE insufficient_privilege: a table or a schema that the role may not use.
NO_PRIVILEGE = "42501"
# Any number does, as long as it is ours: it keeps two upgrades apart on Postgres.
MIGRATION_LOCK_KEY = 7_461_706_562


class Database:
    """The ledger's database.

    Args:
        url: An SQLAlchemy URL for SQLite or Postgres (psycopg).
        pooled: Keep connections open between transactions. A process that
            forks later must not, because a child would share its sockets.
    """

    def __init__(self, url: str, *, pooled: bool = True) -> None:
        try:
            self.url: URL = make_url(url)
        except (ArgumentError, ValueError):
            raise SettingsError(f"database_url: {redact_url(url)!r} is not a URL") from None
        self.is_sqlite = self.url.get_backend_name() == "sqlite"
        self._pooled = pooled
        try:
            self._writer = self._create_engine("BEGIN IMMEDIATE")
            # On Postgres one engine serves both; on SQLite a reader must not take
            # the write lock, and a deferred transaction must never turn into a writer.
            self._reader = self._create_engine("BEGIN") if self.is_sqlite else self._writer
        except (ArgumentError, ValueError, TypeError):
            raise SettingsError(
                f"database_url: {self.shown_url!r} is not usable; expected sqlite:////PATH or "
                "postgresql://USER:PASSWORD@HOST:PORT/NAME, with options that the driver knows"
            ) from None

    def _create_engine(self, begin: str) -> Engine:
        options: dict[str, Any] = {} if self._pooled else {"poolclass": NullPool}
        if not self.is_sqlite:
            return create_engine(
                self.url, pool_pre_ping=self._pooled, connect_args={"connect_timeout": 5}, **options
            )
        engine = create_engine(self.url, connect_args={"timeout": BUSY_TIMEOUT_SECONDS}, **options)
        event.listen(engine, "connect", _prepare_sqlite)
        event.listen(engine, "begin", lambda connection: connection.exec_driver_sql(begin))
        return engine

    @contextmanager
    def write(self) -> Iterator[Connection]:
        """A transaction that may write; committed at the end, rolled back on an exception."""
        with self._guarded(self._writer) as connection:
            yield connection

    @contextmanager
    def read(self) -> Iterator[Connection]:
        """A transaction that only reads."""
        with self._guarded(self._reader) as connection:
            yield connection

    @contextmanager
    def migrate(self) -> Iterator[Connection]:
        """A transaction that may change tables.

        On SQLite a migration rebuilds a table and drops the old one, which with
        foreign keys on deletes every row that refers to it.
        """
        if not self.is_sqlite:
            with self.write() as connection:
                yield connection
            return
        engine = self._create_engine("BEGIN IMMEDIATE")
        event.listen(engine, "connect", _without_foreign_keys)
        try:
            with self._guarded(engine) as connection:
                yield connection
        finally:
            engine.dispose()

    @contextmanager
    def _guarded(self, engine: Engine) -> Iterator[Connection]:
        try:
            with engine.begin() as connection:
                yield connection
        except DBAPIError as error:
            if _is_a_statement_s_fault(error):
                raise
            raise DatabaseUnavailableError(
                f"the database {self.shown_url} failed: {_first_line(error)}; "
                "`tgp-jobs doctor` checks it"
            ) from error

    @property
    def shown_url(self) -> str:
        return redact_url(self.url.render_as_string(hide_password=True))

    def close(self) -> None:
        self._writer.dispose()
        self._reader.dispose()


def _prepare_sqlite(connection: Any, _record: Any) -> None:
    # Transactions are begun by our listener, not by the driver's guess, which
    # would start a deferred one and fail with "database is locked" on upgrade.
    connection.isolation_level = None
    cursor = connection.cursor()
    _write_ahead(cursor)
    # FULL: a commit that was reported survives a power cut.
    cursor.execute("PRAGMA synchronous=FULL")
    cursor.execute("PRAGMA foreign_keys=ON")
    cursor.close()


def _write_ahead(cursor: Any) -> None:
    """Switch to the write-ahead log.

    Where several processes open a new file at once, SQLite answers this one
    with "locked" right away, whatever the busy timeout.
    """
    deadline = time.monotonic() + WRITE_AHEAD_PATIENCE_SECONDS
    while True:
        try:
            cursor.execute("PRAGMA journal_mode=WAL")
            return
        except sqlite3.OperationalError as error:
            if "locked" not in str(error) or time.monotonic() > deadline:
                raise
            time.sleep(WRITE_AHEAD_RETRY_SECONDS)


def _without_foreign_keys(connection: Any, _record: Any) -> None:
    connection.execute("PRAGMA foreign_keys=OFF")


def _is_a_statement_s_fault(error: DBAPIError) -> bool:
    """Whether it is our mistake, and not the database's state or its address."""
    if error.statement is None or getattr(error.orig, "sqlstate", None) == NO_PRIVILEGE:
        return False
    return isinstance(error, (IntegrityError, ProgrammingError, DataError))


def _first_line(error: DBAPIError) -> str:
    return str(error.orig).strip().splitlines()[0] if str(error.orig).strip() else "no reason given"


def open_database(settings: Settings, *, pooled: bool = True) -> Database:
    """Connect and make sure that the schema is the one this program knows.

    SQLite is created and upgraded on the way; Postgres is upgraded by
    ``tgp-jobs db upgrade`` only, since other boxes may be using it.

    Raises:
        DatabaseUnavailableError: It cannot be reached.
        SchemaError: Its schema is older or newer than this program.
    """
    database = connect(settings, pooled=pooled)
    try:
        check_schema(database, upgrade_sqlite=True)
    except BaseException:
        database.close()
        raise
    return database


def connect(settings: Settings, *, pooled: bool = True) -> Database:
    """A database whose schema is not looked at."""
    make_home(settings)
    database = Database(settings.effective_database_url, pooled=pooled)
    if database.is_sqlite:
        if database.url.database in (None, "", ":memory:"):
            # Nobody but this connection would see it.
            raise SettingsError("database_url: SQLite needs a file, as in sqlite:////srv/jobs.db")
        path = Path(str(database.url.database)).absolute()
        if not path.parent.is_dir():
            raise SettingsError(f"database_url: there is no folder {path.parent}")
        # Prompts are nobody else's business, wherever the file is; what SQLite
        # puts beside it gets the same mode. Never a file that is there: closing
        # it would drop the locks of every connection that this process has to it.
        with suppress(OSError):  # SQLite says it better
            os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
    return database


def schema_revision(database: Database) -> str | None:
    """The revision the database is at, None for an empty one."""
    with database.read() as connection:
        if not inspect(connection).has_table("alembic_version"):
            return None
        revision = connection.execute(text("SELECT version_num FROM alembic_version")).scalar()
        return None if revision is None else str(revision)


def check_schema(database: Database, *, upgrade_sqlite: bool) -> None:
    """Raise SchemaError unless the schema is current, upgrading SQLite if asked to."""
    revision = schema_revision(database)
    if revision == SCHEMA_REVISION:
        return
    _refuse_newer(revision)
    if database.is_sqlite and upgrade_sqlite:
        upgrade(database)
        return
    state = "empty" if revision is None else f"at {revision}, older than {SCHEMA_REVISION}"
    raise SchemaError(
        f"the schema of {database.shown_url} is {state}: run `tgp-jobs db upgrade` once"
    )


def _refuse_newer(revision: str | None) -> None:
    if revision is not None and revision > SCHEMA_REVISION:
        raise SchemaError(
            f"the database schema ({revision}) is newer than this program "
            f"({SCHEMA_REVISION}): upgrade tgp-jobs"
        )


def upgrade(database: Database, revision: str = "head") -> None:
    """Run the migrations, alone: a second caller waits and finds nothing to do.

    Raises:
        SchemaError: The schema is newer than this program.
    """
    from alembic import command
    from alembic.config import Config

    _refuse_newer(schema_revision(database))
    config = Config()
    config.set_main_option("script_location", str(migrations_folder()).replace("%", "%%"))
    with database.migrate() as connection:
        if not database.is_sqlite:
            connection.execute(
                text("SELECT pg_advisory_xact_lock(:key)"), {"key": MIGRATION_LOCK_KEY}
            )
        config.attributes["connection"] = connection
        command.upgrade(config, revision)


def migrations_folder() -> Path:
    return packaged_folder(in_wheel="migrations", in_checkout="alembic")
