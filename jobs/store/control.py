"""Cancel and retry."""

from __future__ import annotations

from sqlalchemy import and_, delete, or_, select, update

from jobs.database import Database
from jobs.models import completions, database_now, jobs, shards
from jobs.store.leases import LIVE_JOB, NO_LEASE, lock_job


def cancel_job(database: Database, job_id: str) -> bool:
    """End a job early; what is finished stays. False when it had ended already.

    A worker in the middle of a shard sees its lease gone at the next renewal
    or write, and stops.
    """
    with database.write() as connection:
        if lock_job(connection, job_id).status not in LIVE_JOB:
            return False
        connection.execute(
            update(shards)
            .where(shards.c.job_id == job_id, shards.c.status.in_(("queued", "running")))
            .values(status="cancelled", finished_at=database_now(), **NO_LEASE)
        )
        connection.execute(
            update(jobs)
            .where(jobs.c.id == job_id)
            .values(status="cancelled", finished_at=database_now())
        )
    return True


def retry_job(database: Database, job_id: str) -> int:
    """Queue an ended job's failed prompts again, and those that a failed job never reached.

    Returns:
        How many prompts will be run; 0 leaves the job as it is.
    """
    with database.write() as connection:
        job = lock_job(connection, job_id)
        if job.status not in ("completed", "failed"):
            return 0
        connection.execute(
            delete(completions).where(
                completions.c.job_id == job_id, completions.c.error_code.is_not(None)
            )
        )
        size = shards.c.last_index - shards.c.first_index + 1
        unfinished = and_(
            shards.c.job_id == job_id,
            or_(shards.c.failed_prompts > 0, shards.c.status == "failed"),
        )
        missing = connection.execute(
            select(size - shards.c.completed_prompts).where(unfinished)
        ).scalars()
        count = int(sum(missing))
        if count == 0:
            return 0
        connection.execute(
            update(shards)
            .where(unfinished)
            .values(
                status="queued",
                failed_prompts=0,
                crashes=0,
                published_at=None,
                finished_at=None,
                **NO_LEASE,
            )
        )
        connection.execute(
            update(jobs)
            .where(jobs.c.id == job_id)
            .values(status="queued", error_code=None, error_message=None, finished_at=None)
        )
    return count
