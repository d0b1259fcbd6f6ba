"""Which shard joins those that a worker holds, and whether others should have their turn."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from sqlalchemy import Select, case, select

from jobs.database import Database
from jobs.models import IS_QUEUED, jobs, shards
from jobs.store.leases import LIVE_JOB, may_run_beside
from jobs.store.records import PRIORITIES, PublishableShard

_RANK = case(
    {priority: rank for rank, priority in enumerate(PRIORITIES)},
    value=jobs.c.priority,
    else_=len(PRIORITIES),
)


def shard_to_join(
    database: Database, model: str, *, job_id: str | None = None
) -> PublishableShard | None:
    """The queued shard of a model that is first in line, of those that endanger no other.

    By its job's priority, then by the job's age. It is not taken yet.

    Args:
        database: The ledger.
        model: The model's alias.
        job_id: Only shards of this job.
    """
    query = (
        _queued(shards.c.id, jobs.c.model, jobs.c.priority)
        .where(jobs.c.model == model, may_run_beside())
        .order_by(_RANK, jobs.c.created_at, jobs.c.id, shards.c.first_index)
        .limit(1)
    )
    if job_id is not None:
        query = query.where(jobs.c.id == job_id)
    with database.read() as connection:
        row = connection.execute(query).one_or_none()
    if row is None:
        return None
    return PublishableShard(shard_id=row.id, model=row.model, priority=row.priority)


def priority_waiting(database: Database, models: Collection[str]) -> str | None:
    """The highest priority of the shards that wait for one of the models; None if none does."""
    query = _queued(jobs.c.priority).where(jobs.c.model.in_(models)).order_by(_RANK).limit(1)
    with database.read() as connection:
        return connection.execute(query).scalar_one_or_none()


def _queued(*columns: Any) -> Select[Any]:
    return (
        select(*columns)
        .join(jobs, shards.c.job_id == jobs.c.id)
        .where(IS_QUEUED, jobs.c.status.in_(LIVE_JOB))
    )
