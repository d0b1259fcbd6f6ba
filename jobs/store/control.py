"""Cancel and retry."""

from __future__ import annotations

from sqlalchemy import ColumnElement, delete, func, select, update

from jobs.database import Database
from jobs.models import completions, database_now, jobs, prompts, shards
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
        # By the prompts and not by each shard's counters: a shard that was cut
        # in halves has counted results that lie in the other half's range.
        done = func.coalesce(func.sum(shards.c.completed_prompts), 0)
        completed = connection.execute(select(done).where(shards.c.job_id == job_id)).scalar_one()
        count = int(job.total_prompts - completed)
        if count == 0:
            return 0
        connection.execute(update(shards).where(shards.c.job_id == job_id).values(failed_prompts=0))
        connection.execute(
            update(shards)
            .where(shards.c.job_id == job_id, has_pending_prompt())
            .values(
                status="queued",
                crashes=0,
                load_crashes=0,
                published_at=None,
                finished_at=None,
                **NO_LEASE,
            )
        )
        # A shard that failed with its job when it had its last result already: it
        # would keep the job from ever being completed.
        connection.execute(
            update(shards)
            .where(shards.c.job_id == job_id, shards.c.status == "failed")
            .values(status="completed")
        )
        connection.execute(
            update(jobs)
            .where(jobs.c.id == job_id)
            .values(status="queued", error_code=None, error_message=None, finished_at=None)
        )
    return count


def has_pending_prompt() -> ColumnElement[bool]:
    """Of a shard: some prompt in its range has no result."""
    result = select(completions.c.prompt_index).where(
        completions.c.job_id == prompts.c.job_id,
        completions.c.prompt_index == prompts.c.prompt_index,
    )
    return (
        select(prompts.c.prompt_index)
        .where(
            prompts.c.job_id == shards.c.job_id,
            prompts.c.prompt_index.between(shards.c.first_index, shards.c.last_index),
            ~result.exists(),
        )
        .exists()
    )
