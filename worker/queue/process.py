"""What a worker's parent sets up before it forks, and what its child makes of it."""

from __future__ import annotations

import os
import signal
import socket
import threading
from dataclasses import dataclass, field
from importlib.metadata import version
from typing import Any

from jobs.catalogue import Catalogue
from jobs.database import Database, open_database
from jobs.dispatch import Dispatcher
from jobs.errors import DatabaseUnavailableError, TgpError
from jobs.settings import Settings, redact_url
from jobs.store import workers
from worker.log import Logger, configure_logging, get_logger
from worker.models.engine_host import EngineHost
from worker.models.engine_imports import EngineImports
from worker.queue.embedded_redis import EmbeddedRedis
from worker.queue.sweeper import Sweeper
from worker.shards.held_shard import Outcome
from worker.shards.run_shard import ShardRunner
from worker.shards.stop_signal import StopSignal
from worker.shards.worker_id import new_worker_id

# After a second signal to stop, what is left of a clean end gets this long.
FORCED_EXIT_SECONDS = 5.0


@dataclass(kw_only=True)
class WorkerProcess:
    """What the parent sets up before it forks, and what the child makes of it.

    The parent holds the sweeper and the embedded Redis; the child, forked with
    a copy of this, opens a database of its own and holds the model.
    """

    settings: Settings
    catalogue: Catalogue
    worker_id: str = field(default_factory=new_worker_id)
    stop_signal: StopSignal = field(default_factory=StopSignal)
    imports: EngineImports = field(default_factory=EngineImports)
    redis: EmbeddedRedis | None = None
    database: Database | None = None
    sweeper: Sweeper | None = None
    dispatcher: Dispatcher | None = None
    controller: Any = None
    runner: ShardRunner | None = None
    stop_requests: int = 0

    @property
    def log(self) -> Logger:
        return get_logger().bind(worker=self.worker_id)

    # --- in the parent ---

    def before_start(self, controller: Any) -> None:
        """Make ready what the consumer needs before it connects."""
        self.controller = controller
        configure_logging(self.settings.log_format)
        if self.settings.redis_is_embedded:
            self.redis = EmbeddedRedis(self.settings, self.log)
            self.redis.start()
        # Not pooled: the pool's children must not inherit open connections.
        self.database = open_database(self.settings, pooled=False)
        workers.register_worker(
            self.database,
            worker_id=self.worker_id,
            hostname=socket.gethostname(),
            process=os.getpid(),
            version=version("tgp-jobs"),
            models=sorted(self.catalogue),
        )

    def when_ready(self) -> None:
        """Sweep at once, then regularly."""
        assert self.database is not None
        self.dispatcher = Dispatcher(self.settings)
        self.sweeper = Sweeper(
            settings=self.settings,
            database=self.database,
            dispatcher=self.dispatcher,
            worker_id=self.worker_id,
            log=self.log,
            redis=self.redis,
        )
        self.sweeper.start()
        self.log.info(
            "worker_ready",
            redis=redact_url(self.settings.effective_redis_url),
            database=self.database.shown_url,
            models=sorted(self.catalogue),
        )

    def when_stopping(self) -> None:
        """Celery has begun to shut down: the child stops at its next decode step."""
        self.stop_requests += 1
        self.stop_signal.set()
        if self.stop_requests == 1:
            return
        # Asked twice: do not wait for the step. Its rows are generated again.
        for child in self._children():
            os.kill(child, signal.SIGKILL)
        exit_anyway = threading.Timer(FORCED_EXIT_SECONDS, os._exit, args=(1,))
        exit_anyway.daemon = True
        exit_anyway.start()

    def after_stop(self) -> None:
        if self.sweeper is not None:
            self.sweeper.stop()
        if self.database is not None:
            try:
                workers.worker_stopped(self.database, self.worker_id)
            except DatabaseUnavailableError as error:
                self.log.warning("worker_state_not_written", reason=error.message)
            self.database.close()
        if self.dispatcher is not None:
            self.dispatcher.close()
        if self.redis is not None:
            self.redis.stop()
        self.log.info("worker_stopped")

    def _children(self) -> list[int]:
        pool = getattr(getattr(self.controller, "pool", None), "_pool", None)
        return [process.pid for process in getattr(pool, "_pool", [])]

    # --- in the child ---

    def in_child(self) -> None:
        """A child begins without a model, and with connections of its own."""
        self.database = open_database(self.settings)
        self.dispatcher = Dispatcher(self.settings)
        workers.worker_unloaded(self.database, self.worker_id)
        self.runner = ShardRunner(
            database=self.database,
            engines=EngineHost(
                settings=self.settings,
                catalogue=self.catalogue,
                database=self.database,
                worker_id=self.worker_id,
                log=self.log,
                imports=self.imports,
            ),
            settings=self.settings,
            worker_id=self.worker_id,
            log=self.log,
            should_stop=self.stop_signal.is_set,
        )

    def run_shard(self, shard_id: int) -> Outcome:
        """Run a shard, and send the message of whatever it put back into the queue."""
        assert self.runner is not None
        assert self.database is not None
        assert self.dispatcher is not None
        outcome = self.runner.run(shard_id)
        if outcome in ("given back", "isolated", "crashed"):
            try:
                self.dispatcher.publish_unpublished(self.database)
            except TgpError as error:
                self.log.warning("publishing_left_to_sweeper", reason=error.message)
        return outcome
