"""Recovers what got lost, in every worker: at its start, then at an interval.

An embedded Redis that died is started again. Shards whose lease ran out are
queued again; queued shards without a message get one; messages that Redis lost
are sent again.
"""

from __future__ import annotations

import os
import threading

from jobs.database import Database
from jobs.dispatch import Dispatcher
from jobs.errors import TgpError
from jobs.settings import Settings
from jobs.store import recovery, workers
from worker.log import Logger
from worker.queue.embedded_redis import EmbeddedRedis


class Sweeper:
    """A thread in the worker's parent process, which never holds a model."""

    def __init__(
        self,
        *,
        settings: Settings,
        database: Database,
        dispatcher: Dispatcher,
        worker_id: str,
        log: Logger,
        redis: EmbeddedRedis | None = None,
    ) -> None:
        self._settings = settings
        self._database = database
        self._dispatcher = dispatcher
        self._worker_id = worker_id
        self._log = log
        self._redis = redis
        self._ended = threading.Event()
        self._sweeping = threading.Lock()
        self._thread = threading.Thread(target=self._run, name="sweeper", daemon=True)

    def start(self) -> None:
        # A child forked in mid-sweep would inherit an open SQLite connection. When
        # the child's garbage collector closes it, SQLite takes itself for the last
        # user and removes the write-ahead log under everybody else: "disk I/O
        # error", and a ledger that two processes see differently.
        os.register_at_fork(
            before=self._sweeping.acquire,
            after_in_parent=self._sweeping.release,
            after_in_child=self._sweeping.release,
        )
        self._thread.start()

    def stop(self) -> None:
        self._ended.set()
        self._thread.join(timeout=10)

    def sweep(self) -> None:
        """Once over everything; what fails is said and left to the next sweep."""
        with self._sweeping:
            self._sweep()

    def _sweep(self) -> None:
        try:
            workers.worker_seen(self._database, self._worker_id)
            expired = recovery.requeue_expired(self._database)
            if expired:
                self._log.warning("leases_expired", shards=expired)
            if self._redis is not None:
                self._redis.revive()
            published = self._dispatcher.publish_unpublished(self._database)
            # Messages sent within the last sweeps may be on their way.
            stale_after_seconds = 2 * self._settings.sweep_seconds
            resent = self._dispatcher.publish_stale(self._database, stale_after_seconds)
            if published or resent:
                self._log.info("shards_published", new=published, resent=resent)
        except TgpError as error:
            self._log.warning("sweep_failed", reason=error.message)
        except Exception:
            self._log.exception("sweep_failed")

    def _run(self) -> None:
        while True:
            self.sweep()
            if self._ended.wait(self._settings.sweep_seconds):
                return
