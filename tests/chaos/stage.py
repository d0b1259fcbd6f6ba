"""Where a fault happens: a state directory, real workers, a Redis and a database to break."""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from tests.acceptance.box import Worker, wait_until
from tests.chaos.cutting_proxy import CuttingProxy, cutting_proxy
from tests.chaos.forked import Forks, fork_server
from tests.chaos.ledger_view import LedgerView
from tests.chaos.servers import Postgres, SmallDisk, own_postgres, small_disk
from tests.chaos.traced_box import TracedBox
from tests.services import RealRedis, own_redis

ROOT = Path(__file__).resolve().parents[2]
DatabaseKind = Literal["sqlite", "postgres"]

LEASE_SECONDS = 2.0
SWEEP_SECONDS = 1.0
MICRO_BATCH_ROWS = 4
LOAD_SECONDS = 0.6
# Room for the schema, one job and its results.
DISK_MEGABYTES = 64

CATALOGUE = f"""
[models.steady]
engine = "null"
micro_batch_seconds = 0.05

[models.quick]
engine = "null"

[models.loads-a]
engine = "null"
load_seconds = {LOAD_SECONDS}
micro_batch_seconds = 0.02

[models.loads-b]
engine = "null"
load_seconds = {LOAD_SECONDS}
micro_batch_seconds = 0.02

[models.bomb]
engine = "null"
crash_on = "boom"

[models.broken]
folder = "nowhere"

[models.tiny-bloom-again]
packaged = "tiny-bloom"
"""
REAL_MODELS = ("tiny-bloom", "tiny-bloom-again")
MODELS = ("steady", "quick", "loads-a", "loads-b", "bomb", "broken", *REAL_MODELS)


@dataclass(frozen=True, kw_only=True)
class Needs:
    """What a fault's stage has.

    Attributes:
        workers: How many there are whenever a run begins.
        redis: One that keeps an append-only file, one that forgets everything,
            one behind a proxy, or the one that a worker starts by itself.
        clock_shifts: Seconds that each worker's clock is off.
        busy_seconds: How long a worker waits for a locked SQLite.
        lease_seconds, max_crashes, micro_batch_rows: The settings of those names.
        small_disk: Whether the database is on a disk of a few megabytes.
    """

    workers: int = 1
    redis: Literal["kept", "forgetful", "proxied", "embedded"] = "kept"
    clock_shifts: tuple[float, ...] = ()
    busy_seconds: float | None = None
    lease_seconds: float = LEASE_SECONDS
    max_crashes: int = 3
    micro_batch_rows: int = MICRO_BATCH_ROWS
    small_disk: bool = False


class Pace:
    """How fast the machine is now, beside how fast it was at its best."""

    def __init__(self) -> None:
        self._fastest: dict[str, float] = {}

    def slowness(self, kind: str, seconds: float) -> float:
        """How many times longer this took than the fastest of its kind."""
        self._fastest[kind] = min(seconds, self._fastest.get(kind, seconds))
        return seconds / self._fastest[kind]


class Servers:
    """What stages share, started when it is first asked for."""

    def __init__(self, stack: ExitStack) -> None:
        self.pace = Pace()
        self._stack = stack
        self._postgres: Postgres | None = None
        self._forks: Forks | None = None

    @property
    def forks(self) -> Forks:
        if self._forks is None:
            self._forks = self._stack.enter_context(fork_server())
        return self._forks

    @property
    def postgres(self) -> Postgres:
        if self._postgres is None:
            self._postgres = self._stack.enter_context(own_postgres())
        return self._postgres


class Stage:
    """Everything that a run needs, kept from run to run as long as it lives."""

    def __init__(
        self,
        *,
        needs: Needs,
        kind: DatabaseKind,
        servers: Servers,
        folder: Path,
        stack: ExitStack,
    ) -> None:
        self.needs = needs
        self.kind = kind
        self.folder = folder
        self.trace_file = folder / "trace.jsonl"
        self.poison_file = folder / "poison"
        self.shortage_file = folder / "shortage"
        self.disk: SmallDisk | None = None
        self.redis: RealRedis | None = None
        self.proxy: CuttingProxy | None = None
        self.postgres = servers.postgres if kind == "postgres" else None
        self.pace = servers.pace
        self._stack = stack
        if needs.small_disk:
            self.disk = stack.enter_context(small_disk(DISK_MEGABYTES))
        self.home = (self.disk.folder if self.disk and kind == "sqlite" else folder) / "home"
        self.box = TracedBox(self.home, folder, self._settings(), servers.forks, MODELS)
        stack.callback(self.box.close)
        self.box.catalogue(CATALOGUE)
        if kind == "sqlite":
            # The first command makes the database.
            self.box.run("list")
        self.ledger = LedgerView(self._database_url())
        stack.callback(self.ledger.close)

    @property
    def workers(self) -> list[Worker]:
        """Those that live, oldest first."""
        return [worker for worker in self.box.workers if worker.process.poll() is None]

    def make_ready(self) -> None:
        """Start what the last run left broken."""
        if self.redis is not None and self.redis.process is None:
            self.redis.start()
        while len(self.workers) < self.needs.workers:
            self.start_worker()

    def start_worker(self) -> float:
        """Start a worker; how long it took to be ready, in seconds."""
        began = time.monotonic()
        shifts = self.needs.clock_shifts
        shift = shifts[len(self.box.workers) % len(shifts)] if shifts else 0.0
        self.box.traced_worker(shift)
        return time.monotonic() - began

    def child_of(self, worker: Worker) -> int:
        """The worker's child; a dead one is being replaced and is waited for."""

        def child() -> int | None:
            try:
                return worker.child
            except (AssertionError, OSError):
                return None

        return int(wait_until(child, "the worker's child"))

    def prompt_file(self, prompts: Sequence[str]) -> str:
        """A file of these prompts, one a line."""
        path = self.folder / f"prompts-{time.monotonic_ns()}.txt"
        path.write_text("\n".join(prompts) + "\n")
        return str(path)

    def _settings(self) -> dict[str, str]:
        settings = {
            "TGP_LEASE_SECONDS": str(self.needs.lease_seconds),
            "TGP_SWEEP_SECONDS": str(SWEEP_SECONDS),
            "TGP_MICRO_BATCH_ROWS": str(self.needs.micro_batch_rows),
            "TGP_MAX_CRASHES": str(self.needs.max_crashes),
            "CHAOS_TRACE": str(self.trace_file),
            "CHAOS_POISON": str(self.poison_file),
            "CHAOS_SHORTAGE": str(self.shortage_file),
            "PYTHONPATH": str(ROOT),
        }
        if self.needs.busy_seconds is not None:
            settings["CHAOS_BUSY_SECONDS"] = str(self.needs.busy_seconds)
        if self.kind == "postgres":
            settings["TGP_DATABASE_URL"] = self._database_url()
        if self.needs.redis != "embedded":
            kept = self.needs.redis == "kept"
            self.redis = self._stack.enter_context(own_redis(persistent=kept))
            settings["TGP_REDIS_URL"] = self.redis.url
        if self.needs.redis == "proxied":
            assert self.redis is not None
            self.proxy = self._stack.enter_context(cutting_proxy(self.redis.socket))
            settings["TGP_REDIS_URL"] = f"redis://127.0.0.1:{self.proxy.port}/0"
        return settings

    def _database_url(self) -> str:
        if self.postgres is None:
            return f"sqlite:///{self.home / 'tgp-jobs.db'}"
        if not hasattr(self, "_postgres_url"):
            disk = self.disk.folder if self.disk is not None else None
            self._postgres_url = self._stack.enter_context(self.postgres.database(disk))
        return self._postgres_url


@contextmanager
def open_stage(needs: Needs, kind: DatabaseKind, servers: Servers) -> Iterator[Stage]:
    """A stage, everything of it ended and removed afterwards."""
    # A short path: an embedded Redis' socket may lie inside.
    folder = Path(tempfile.mkdtemp(prefix="tgp-chaos-"))
    try:
        with ExitStack() as stack:
            yield Stage(needs=needs, kind=kind, servers=servers, folder=folder, stack=stack)
    finally:
        if not os.environ.get("CHAOS_KEEP"):
            shutil.rmtree(folder, ignore_errors=True)


class StageKeeper:
    """Keeps the last stage open for the next fault that needs the same."""

    def __init__(self, servers: Servers) -> None:
        self._servers = servers
        self._stack = ExitStack()
        self._open: tuple[Needs, DatabaseKind, Stage] | None = None

    def stage(self, needs: Needs, kind: DatabaseKind) -> Stage:
        # What one run leaves on a small disk is room that the next one lacks.
        if self._open is None or self._open[:2] != (needs, kind) or needs.small_disk:
            self.close()
            stage = self._stack.enter_context(open_stage(needs, kind, self._servers))
            self._open = (needs, kind, stage)
        return self._open[2]

    def close(self) -> None:
        """End the stage; the next fault gets a new one."""
        self._open = None
        self._stack.close()
