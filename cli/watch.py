"""Wait for a job to end."""

from __future__ import annotations

import gc
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from cli.progress import JobProgress
from jobs.database import Database
from jobs.errors import TgpError
from jobs.store.reading import job_report, model_state
from jobs.store.reports import JobReport

POLL_SECONDS = 0.5


def watch_job(database: Database, job_id: str, *, poll_seconds: float = POLL_SECONDS) -> JobReport:
    """Show a job's progress on stderr until it has ended."""
    gc.enable()
    with JobProgress() as progress:
        while True:
            job = job_report(database, job_id)
            progress.show(job, model_state(database, job.model))
            if job.ended:
                return job
            time.sleep(poll_seconds)


@contextmanager
def progress_shown(database: Database, job_id: str) -> Iterator[None]:
    """Show a job's progress on stderr while this thread works on it."""
    over = threading.Event()

    def show() -> None:
        # The work itself meets the same trouble, and decides what it means.
        with suppress(TgpError):
            job = job_report(database, job_id)
            progress.show(job, model_state(database, job.model))

    def keep_showing() -> None:
        while not over.wait(POLL_SECONDS):
            show()

    with JobProgress() as progress:
        thread = threading.Thread(target=keep_showing, name="progress", daemon=True)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()
            show()


def exit_code(job: JobReport) -> int:
    """What a command that waited for the job exits with."""
    return 0 if job.status == "completed" and job.failed == 0 else 1
