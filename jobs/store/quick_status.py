"""What `status` shows of a healthy ledger, read straight from the database's driver.

Importing SQLAlchemy takes more than half of a command's time, and the queries a
few milliseconds of it. So a look at one job does without, where all is well.
Whatever is not well is left to the usual way, which meets it again and has the
words for it: nothing is created, upgraded or explained here.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from typing import Any
from urllib.parse import parse_qsl, quote, unquote

from jobs.schema import SCHEMA_REVISION
from jobs.settings import Settings
from jobs.store import status_rows
from jobs.store.reports import StatusReports

# The usual way has more patience, and comes after this one's.
SQLITE_PATIENCE_SECONDS = 1.0
POSTGRES_PATIENCE_SECONDS = 2  # the least that libpq takes

# URLs that all libraries read alike; others are left to SQLAlchemy.
_SQLITE_FILE = r"sqlite:///(/[^?%]+)"
_POSTGRES = (
    r"postgresql\+psycopg://(?:(?P<user>[^:/?#@]+)(?::(?P<password>[^/?#@]*))?@)?"
    r"(?P<host>[\w.-]*)(?::(?P<port>\d+))?/(?P<dbname>[\w.-]+)(?:\?(?P<options>[^#]*))?"
)

Execute = Callable[[str, dict[str, Any]], list[status_rows.Row]]


def quick_status(settings: Settings, prefix: str) -> StatusReports | None:
    """The one job that starts with the prefix, its model and its steps.

    None if anything at all is not as on a healthy ledger: the URL is unusual, the
    database does not answer or has another schema, or not one job is meant.
    """
    try:
        with _opened(settings.effective_database_url) as (backend, execute):
            return _read(backend, execute, prefix.strip().lower())
    except Exception:  # the usual way meets it again, and reports it
        return None


def _read(backend: str, execute: Execute, wanted: str) -> StatusReports | None:
    revisions = execute(status_rows.SCHEMA_REVISIONS, {})
    if [row["version_num"] for row in revisions] != [SCHEMA_REVISION]:
        return None
    rows = execute(status_rows.ONE_JOB_REPORT, {"job_id": wanted})
    if wanted and not rows:
        ids = execute(status_rows.JOBS_BY_PREFIX, {"prefix": wanted, "length": len(wanted)})
        if len(ids) == 1:
            rows = execute(status_rows.ONE_JOB_REPORT, {"job_id": ids[0]["id"]})
    if not rows:
        return None
    report = status_rows.job_report_of(rows[0])
    workers = execute(status_rows.MODEL_STATE[backend], {"model": report.model})
    (steps,) = execute(status_rows.STEP_REPORT, {"job_id": report.id})
    return report, status_rows.model_state_of(workers), status_rows.step_report_of(steps)


@contextmanager
def _opened(url: str) -> Iterator[tuple[str, Execute]]:
    """The name of the backend, and what executes a statement there.

    Raises:
        ValueError: The URL is not one that is understood here.
    """
    if file := re.fullmatch(_SQLITE_FILE, url):
        with _sqlite(file[1]) as execute:
            yield "sqlite", execute
    elif parts := re.fullmatch(_POSTGRES, url):
        with _postgres(parts) as execute:
            yield "postgresql", execute
    else:
        raise ValueError


@contextmanager
def _sqlite(path: str) -> Iterator[Execute]:
    import sqlite3

    # Not mode=ro, which leaves the write-ahead log behind where it was the last
    # to close the file. Neither of the two creates the file.
    address = f"file:{quote(path)}?mode=rw"
    with closing(
        sqlite3.connect(address, uri=True, timeout=SQLITE_PATIENCE_SECONDS, isolation_level=None)
    ) as connection:
        connection.row_factory = sqlite3.Row
        connection.execute("PRAGMA query_only=ON")
        connection.execute("BEGIN")
        yield lambda sql, values: connection.execute(sql, values).fetchall()


@contextmanager
def _postgres(parts: re.Match[str]) -> Iterator[Execute]:
    import psycopg
    from psycopg.rows import dict_row

    with closing(
        psycopg.connect(
            **_postgres_options(parts),
            connect_timeout=POSTGRES_PATIENCE_SECONDS,
            autocommit=True,
            row_factory=dict_row,
        )
    ) as connection:

        def execute(sql: str, values: dict[str, Any]) -> list[status_rows.Row]:
            spelt = re.sub(r":(\w+)", r"%(\1)s", sql)
            return [*connection.execute(spelt.encode(), values)]

        yield execute


def _postgres_options(parts: re.Match[str]) -> dict[str, Any]:
    """As SQLAlchemy would call the driver.

    Raises:
        ValueError: An option stands there twice, or a host may be several, or have a port.
    """
    given = parts.groupdict()
    pairs = parse_qsl(given.pop("options") or "")
    options = {name: unquote(value) for name, value in given.items() if value}
    more = dict(pairs)
    folder = more.get("host", "/")  # of a socket
    twice = len(more) < len(pairs) or more.keys() & options.keys()
    if twice or not re.fullmatch("/[^:,]*", folder):
        raise ValueError
    return options | more
