"""Jobs that do not agree with their shards, which no sweep mends, and how they are mended.

A job is looked at again under its lock before it is mended, so workers may run
meanwhile, and a second repair finds nothing to do.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from sqlalchemy import ColumnElement, Connection, Select, func, select, true, update

from jobs.database import Database
from jobs.models import completions, database_now, jobs, shards
from jobs.store.control import has_pending_prompt
from jobs.store.leases import LIVE_JOB, NO_LEASE, lock_job

OPEN_SHARD = ("queued", "running")
# What a job's shards say it should be: over, begun, to be run again for prompts
# that have no result, or without shards that could still run.
Disagreement = Literal["complete", "running", "reopen", "no results", "shards open", "stuck"]


@dataclass(frozen=True, kw_only=True)
class WrongJob:
    """A job whose status is not what its shards say."""

    job_id: str
    status: str
    disagreement: Disagreement


def wrong_jobs(database: Database) -> list[WrongJob]:
    """The jobs whose status does not agree with their shards, oldest first."""
    with database.read() as connection:
        rows = connection.execute(_tallies().order_by(jobs.c.created_at)).all()
    return [wrong for row in rows if (wrong := _judged(row)) is not None]


def mend_job(database: Database, job_id: str) -> WrongJob | None:
    """Bring a job and its shards together; None when they agree by now."""
    with database.write() as connection:
        lock_job(connection, job_id)
        wrong = _judged(connection.execute(_tallies(job_id)).one())
        if wrong is not None:
            _mend(connection, wrong)
        return wrong


def _tallies(job_id: str | None = None) -> Select[Any]:
    """Of each job, or of one: how many shards it has in each state, and results."""
    counts = (
        select(
            shards.c.job_id,
            func.count().label("shards_total"),
            *[
                func.count(shards.c.id).filter(shards.c.status == status).label(status)
                for status in OPEN_SHARD
            ],
            func.sum(shards.c.completed_prompts + shards.c.failed_prompts).label("done"),
        )
        .where(true() if job_id is None else shards.c.job_id == job_id)
        .group_by(shards.c.job_id)
        .subquery()
    )
    tallies = select(
        jobs.c.id, jobs.c.status, jobs.c.total_prompts, *[c for c in counts.c if c.name != "job_id"]
    ).outerjoin(counts, counts.c.job_id == jobs.c.id)
    return tallies if job_id is None else tallies.where(jobs.c.id == job_id)


def _judged(row: Any) -> WrongJob | None:
    is_open = bool((row.queued or 0) + (row.running or 0))
    if row.shards_total is None:
        return None
    has_all = row.done >= row.total_prompts
    disagreement: Disagreement | None = None
    if row.status in LIVE_JOB:
        if row.status == "queued" and row.running:
            disagreement = "running"
        elif not is_open:
            disagreement = "complete" if has_all else "stuck"
    elif row.status == "completed":
        if is_open:
            disagreement = "reopen"
        elif not has_all:
            disagreement = "no results"
    elif is_open:
        disagreement = "shards open"
    if disagreement is None:
        return None
    return WrongJob(job_id=row.id, status=row.status, disagreement=disagreement)


def _mend(connection: Connection, wrong: WrongJob) -> None:
    if wrong.disagreement == "complete":
        _set_shards(connection, wrong.job_id, status="completed")
        _set_job(connection, wrong.job_id, status="completed", finished_at=database_now())
    elif wrong.disagreement == "running":
        started = func.coalesce(jobs.c.started_at, database_now())
        _set_job(connection, wrong.job_id, status="running", started_at=started)
    elif wrong.disagreement == "shards open":
        # As its end was: what had not begun was to be left alone.
        _set_shards(
            connection,
            wrong.job_id,
            shards.c.status.in_(OPEN_SHARD),
            status=wrong.status,
            finished_at=database_now(),
            **NO_LEASE,
        )
    else:
        _reopen(connection, wrong.job_id)


def _reopen(connection: Connection, job_id: str) -> None:
    """Let a job go on: whatever has no result is queued, and nothing is run twice."""
    _set_shards(
        connection,
        job_id,
        shards.c.status.not_in(OPEN_SHARD),
        has_pending_prompt(),
        status="queued",
        published_at=None,
        finished_at=None,
        **NO_LEASE,
    )
    is_over = shards.c.status.not_in(OPEN_SHARD)
    _set_shards(connection, job_id, is_over, status="completed", **_counted_results())
    job = connection.execute(_tallies(job_id)).one()
    if job.queued + job.running:
        status = "running" if job.running else "queued"
        _set_job(
            connection, job_id, status=status, error_code=None, error_message=None, finished_at=None
        )
    else:  # only the counts were wrong
        _set_job(connection, job_id, status="completed", finished_at=database_now())


def _counted_results() -> dict[str, Any]:
    """A shard's counters from the results themselves."""

    def count(condition: ColumnElement[bool]) -> Any:
        return (
            select(func.count())
            .where(completions.c.shard_id == shards.c.id, condition)
            .scalar_subquery()
        )

    return {
        "completed_prompts": count(completions.c.error_code.is_(None)),
        "failed_prompts": count(completions.c.error_code.is_not(None)),
    }


def _set_shards(
    connection: Connection, job_id: str, *conditions: ColumnElement[bool], **values: Any
) -> None:
    connection.execute(
        update(shards).where(shards.c.job_id == job_id, *conditions).values(**values)
    )


def _set_job(connection: Connection, job_id: str, **values: Any) -> None:
    connection.execute(update(jobs).where(jobs.c.id == job_id).values(**values))
