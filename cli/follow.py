"""A job's results in input order while it still runs."""

from __future__ import annotations

import time
from collections.abc import Iterator

from jobs.database import Database
from jobs.store.reading import job_report
from jobs.store.records import ResultRow
from jobs.store.results import result_rows

POLL_SECONDS = 0.5


def follow_results(
    database: Database,
    job_id: str,
    *,
    failed_only: bool = False,
    poll_seconds: float = POLL_SECONDS,
) -> Iterator[ResultRow]:
    """Yield each result once all before it are there; at the job's end, what there is."""
    next_index = 0
    while True:
        # Before the results are read, so that an ended job's are all seen.
        job = job_report(database, job_id)
        # More results than were passed on: the next may be among them.
        if job.ended or job.completed + job.failed > next_index:
            for row in result_rows(database, job_id, after=next_index - 1):
                if row.index != next_index and not job.ended:
                    break
                next_index = row.index + 1
                if row.error_code is not None or not failed_only:
                    yield row
        if job.ended:
            return
        time.sleep(poll_seconds)
