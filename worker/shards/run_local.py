"""A job in this process: the same claims on the same ledger, no Celery, no Redis."""

from __future__ import annotations

import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from importlib.metadata import version

from jobs.catalogue import find_model, load_catalogue
from jobs.database import Database
from jobs.errors import DatabaseUnavailableError
from jobs.settings import Settings
from jobs.store import leases, reading, recovery, workers
from jobs.store.reports import JobReport
from worker.log import get_logger
from worker.models.engine_host import EngineHost
from worker.shards.run_shard import ShardRunner
from worker.shards.stop_signal import StopSignal
from worker.shards.worker_id import new_worker_id

# While another worker holds the job's last shards.
POLL_SECONDS = 0.5


# A worker that has been silent for two minutes is taken for dead.
SECONDS_BETWEEN_SIGNS = 30.0


def run_job(
    settings: Settings,
    database: Database,
    job_id: str,
    *,
    on_progress: Callable[[JobReport], None] | None = None,
) -> JobReport:
    """Work on a job until it has ended.

    Args:
        settings: This process's settings.
        database: The ledger.
        job_id: The job; it may be half done already, or shared with workers.
        on_progress: Told the job's state at first, and when the shards that were
            run together have ended.

    Raises:
        UnknownModelError: The catalogue here has no such model.
        KeyboardInterrupt: Ctrl-C was pressed; what is finished is written and
            the job can be taken up again.
    """
    worker_id = new_worker_id()
    log = get_logger().bind(worker=worker_id)
    catalogue = load_catalogue(settings)
    # A shard of a model that is not served is given back, here to ourselves, for ever.
    find_model(catalogue, reading.job_report(database, job_id).model)
    stop = StopSignal()
    workers.register_worker(
        database,
        worker_id=worker_id,
        hostname=socket.gethostname(),
        process=os.getpid(),
        version=version("tgp-jobs"),
        models=[],  # it takes no messages
    )
    engines = EngineHost(
        settings=settings, catalogue=catalogue, database=database, worker_id=worker_id, log=log
    )
    runner = ShardRunner(
        database=database,
        engines=engines,
        settings=settings,
        worker_id=worker_id,
        log=log,
        should_stop=stop.is_set,
        job_id=job_id,
    )
    with _interruptible(stop), _seen_alive(database, worker_id):
        try:
            return _run(database, runner, stop, job_id, on_progress)
        finally:
            engines.unload()
            workers.worker_stopped(database, worker_id)


def _run(
    database: Database,
    runner: ShardRunner,
    stop: StopSignal,
    job_id: str,
    on_progress: Callable[[JobReport], None] | None,
) -> JobReport:
    while True:
        report = reading.job_report(database, job_id)
        if on_progress is not None:
            on_progress(report)
        if report.ended:
            return report
        if stop.is_set():
            raise KeyboardInterrupt
        shard_id = leases.next_shard_of(database, job_id)
        if shard_id is None:
            time.sleep(POLL_SECONDS)
            recovery.requeue_expired(database)
        else:
            runner.run(shard_id)


@contextmanager
def _seen_alive(database: Database, worker_id: str) -> Iterator[None]:
    """Tell the ledger now and then that this process lives, for `status` elsewhere."""
    ended = threading.Event()

    def tell() -> None:
        while not ended.wait(SECONDS_BETWEEN_SIGNS):
            with suppress(DatabaseUnavailableError):
                workers.worker_seen(database, worker_id)

    thread = threading.Thread(target=tell, name="sign-of-life", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


@contextmanager
def _interruptible(stop: StopSignal) -> Iterator[None]:
    """The first Ctrl-C or SIGTERM asks to stop; the next one interrupts at once."""

    def ask(_number: int, _frame: object) -> None:
        if stop.is_set():
            raise KeyboardInterrupt
        stop.set()

    before = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
