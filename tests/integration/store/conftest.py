"""Quicker databases for the many small tests of the ledger.

Cloning a Postgres database costs more than these tests do, so they share one
that is emptied for each; SQLite is a copy of one file that was migrated once.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from jobs.settings import Settings
from tests.services import fresh_database, run_sql


@pytest.fixture(scope="session")
def _shared_postgres_url(_postgres_server: str, _postgres_template: str) -> Iterator[str]:
    with fresh_database(_postgres_server, template=_postgres_template) as url:
        # Commits are seen just the same; only a power cut would tell.
        name = url.partition("?")[0].rsplit("/", 1)[1]
        run_sql(url, f"ALTER DATABASE {name} SET synchronous_commit = off")
        yield url


@pytest.fixture
def postgres_url(_shared_postgres_url: str) -> str:
    run_sql(_shared_postgres_url, "DELETE FROM jobs; DELETE FROM workers")
    return _shared_postgres_url


@pytest.fixture(params=["sqlite", "postgres"])
def database_settings(
    request: pytest.FixtureRequest, home: Path, _migrated_sqlite: Path
) -> Settings:
    """Settings whose database is SQLite, then Postgres."""
    if request.param == "postgres":
        return Settings(home=home, database_url=request.getfixturevalue("postgres_url"))
    home.mkdir()
    shutil.copy(_migrated_sqlite, home)
    return Settings(home=home)
