"""A database that restarts, is locked, or has no room."""

from __future__ import annotations

import resource
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

from tests.chaos.fault import fault
from tests.chaos.process_faults import while_generating, while_writing
from tests.chaos.run import Run
from tests.chaos.servers import can_mount
from tests.chaos.stage import Needs

SMALL_DISK = Needs(small_disk=True)
BUSY_SECONDS = 0.5
# What a worker says when it cannot write finished rows, and waits with them.
REFUSED = " results_wait_for_database "
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
    with subprocess.Popen(
        [sys.executable, "-c", LOCKER, str(database_file(run))],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as locker:
        assert locker.stdout is not None
        assert locker.stdout.readline() == "locked\n"
        yield


def empty_write_ahead_log(run: Run) -> None:
    """Give its room back, in which a full disk would let SQLite go on for megabytes."""
    with closing(sqlite3.connect(database_file(run), timeout=10)) as connection:
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")


def database_file(run: Run) -> Path:
    return run.stage.home / "tgp-jobs.db"


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
    # Four words of an echo are 32 kB, which need room that is not there yet.
    prompts = [" ".join(run.random.randbytes(4000).hex() for _ in range(4)) for _ in range(96)]
    job = run.submit("steady", prompts)
    run.wait_until_some_are_begun(job, most_share=0.4)
    run.strike(job)
    refused = run.logged(REFUSED)
    if run.stage.kind == "sqlite":
        empty_write_ahead_log(run)
    run.stage.disk.fill()
    try:
        run.wait_until(lambda: run.logged(REFUSED) > refused or run.has_ended(job))
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
        # Not until the worker says so: its log may not grow either.
        run.wait_seconds(0.5)
        run.pause(2.0)
    finally:
        resource.prlimit(child, resource.RLIMIT_FSIZE, (soft, hard))
    run.mended(job)
