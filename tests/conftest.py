"""Real services for the tests: each session starts its own and ends them by pid.

Nothing is skipped for want of a service: pip brings them all.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import hypothesis
import pytest

# Before torch is imported, here and in every process that a test starts: two processes
# of two threads each would wait for each other on a small machine.
os.environ.setdefault("OMP_NUM_THREADS", "1")

from jobs.database import Database, open_database, upgrade
from jobs.settings import Settings
from tests.services import RealRedis, fresh_database, named, own_redis, real_postgres, run_sql

# Few examples of each property in every run; `make fuzz` looks at many.
hypothesis.settings.register_profile("few", max_examples=25, deadline=None)
hypothesis.settings.register_profile("many", max_examples=500, deadline=None)
hypothesis.settings.load_profile("few")


@pytest.fixture(autouse=True)
def _no_settings_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.startswith("TGP_"):
            monkeypatch.delenv(name)


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return tmp_path / "home"


@pytest.fixture
def settings(home: Path) -> Settings:
    return Settings(home=home)


@pytest.fixture
def sqlite_database(settings: Settings) -> Iterator[Database]:
    database = open_database(settings)
    yield database
    database.close()


@pytest.fixture(scope="session")
def _session_redis() -> Iterator[RealRedis]:
    with own_redis() as server:
        yield server


@pytest.fixture
def real_redis(_session_redis: RealRedis) -> RealRedis:
    """A running, empty Redis."""
    if _session_redis.process is None:
        _session_redis.start()
    with _session_redis.client() as client:
        client.flushall()
    return _session_redis


@pytest.fixture(scope="session")
def _postgres_server() -> Iterator[str]:
    with real_postgres() as url:
        yield url


@pytest.fixture(scope="session")
def _postgres_template(_postgres_server: str) -> str:
    """A migrated database that each test clones, which takes 30 ms instead of 300."""
    run_sql(_postgres_server, "CREATE DATABASE tgp_template")
    database = Database(named(_postgres_server, "tgp_template"), pooled=False)
    upgrade(database)
    database.close()
    return "tgp_template"


@pytest.fixture
def empty_postgres_url(_postgres_server: str) -> Iterator[str]:
    """The URL of a database without a schema."""
    with fresh_database(_postgres_server, template="template1") as url:
        yield url


@pytest.fixture
def postgres_url(_postgres_server: str, _postgres_template: str) -> Iterator[str]:
    """The URL of a migrated database of the test's own."""
    with fresh_database(_postgres_server, template=_postgres_template) as url:
        yield url


@pytest.fixture(params=["sqlite", "postgres"])
def database_settings(request: pytest.FixtureRequest, home: Path) -> Settings:
    """Settings whose database is SQLite, then Postgres."""
    if request.param == "sqlite":
        return Settings(home=home)
    return Settings(home=home, database_url=request.getfixturevalue("postgres_url"))


@pytest.fixture
def database(database_settings: Settings) -> Iterator[Database]:
    """The ledger on SQLite, then on Postgres."""
    database = open_database(database_settings)
    yield database
    database.close()
