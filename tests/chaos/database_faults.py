"""A database that restarts, is locked, or has no room."""

from __future__ import annotations

import resource
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from tests.chaos.fault import fault
from tests.chaos.process_faults import while_generating, while_writing
from tests.chaos.run import Run
from tests.chaos.servers import can_mount
from tests.chaos.stage import Needs

BUSY_SECONDS = 0.5
# Holds the lock until its input ends.
LOCKER = """
import sqlite3, sys
connection = sqlite3.connect(sys.argv[1], isolation_level=None, timeout=30)
connection.execute("BEGIN EXCLUSIVE")
print("locked", flush=True)
sys.stdin.read()
connection.execute("ROLLBACK")
"""


@fault("Postgres restarted in mid-commit, as after a power cut", databases=("postgres",))
def postgres_restarted(run: Run) -> None:
    assert run.stage.postgres is not None
    job = while_writing(run)
    run.strike(job)
    run.stage.postgres.restart()
    run.mended(job)


@contextmanager
def sqlite_locked(run: Run) -> Iterator[None]:
    """Another process holds the write lock."""
    path = run.stage.home / "tgp-jobs.db"
    with subprocess.Popen(
        [sys.executable, "-c", LOCKER, str(path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as locker:
        assert locker.stdout is not None
        assert locker.stdout.readline() == "locked\n"
        yield


@fault(
    "SQLite locked by another process for longer than the busy timeout",
    Needs(busy_seconds=BUSY_SECONDS),
    databases=("sqlite",),
)
def locked(run: Run) -> None:
    job = while_writing(run)
    run.strike(job)
    with sqlite_locked(run):
        # Longer than the lease at times, which then cannot be renewed.
        run.pause(BUSY_SECONDS)
        run.wait_seconds(3 * BUSY_SECONDS)
        run.pause(1.0)
    run.mended(job)


@fault(
    "disk full while results are written, then freed", Needs(small_disk=True), possible=can_mount
)
def disk_full(run: Run) -> None:
    assert run.stage.disk is not None
    job = while_generating(run)
    run.strike(job)
    run.stage.disk.fill()
    try:
        run.wait_seconds(0.5)
        run.pause(2.0)
    finally:
        run.stage.disk.free()
    run.mended(job)


@fault("no file may grow while results are written, then allowed", databases=("sqlite",))
def quota(run: Run) -> None:
    """What a full quota looks like, for a user who may not mount a disk."""
    job = while_generating(run)
    child = run.stage.child_of(run.holder(job))
    run.strike(job)
    soft, hard = resource.prlimit(child, resource.RLIMIT_FSIZE)
    resource.prlimit(child, resource.RLIMIT_FSIZE, (4096, hard))
    try:
        run.wait_seconds(0.5)
        run.pause(2.0)
    finally:
        resource.prlimit(child, resource.RLIMIT_FSIZE, (soft, hard))
    run.mended(job)
