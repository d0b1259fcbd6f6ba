"""Which shards want a message on the queue."""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import ColumnElement, Select, and_, select, update

from jobs.database import Database
from jobs.models import IS_QUEUED, database_now, jobs, shards
from jobs.store.leases import LIVE_JOB
from jobs.store.records import PublishableShard

# One transaction's worth; a job of a million prompts has 4 000 shards.
SHARDS_PER_TRANSACTION = 10_000


def take_unpublished(database: Database, job_id: str | None = None) -> list[PublishableShard]:
    """Mark queued shards without a message as published, and return them to be sent.

    Of several sweepers exactly one gets each shard. The caller sends the
    messages and gives back with `unpublish` what it could not send.
    """
    wanted = shards.c.published_at.is_(None)
    return _take(database, and_(wanted, shards.c.job_id == job_id) if job_id else wanted)


def take_stale(database: Database, model: str, older_than_seconds: float) -> list[PublishableShard]:
    """The same for shards of a model whose message was sent long ago.

    Meant for a model whose queue is empty: those messages are lost, or with
    a worker that has not claimed yet, to whom a second one does no harm.
    """
    return _take(
        database,
        and_(jobs.c.model == model, shards.c.published_at < database_now(-older_than_seconds)),
    )


def models_waiting(database: Database) -> list[str]:
    """The models that have queued shards."""
    with database.read() as connection:
        return list(
            connection.execute(
                select(jobs.c.model)
                .join(shards, shards.c.job_id == jobs.c.id)
                .where(IS_QUEUED, _alive())
                .distinct()
            ).scalars()
        )


def unpublish(database: Database, shard_ids: Sequence[int]) -> None:
    """The messages of these shards could not be sent: leave them to the next sweep."""
    if not shard_ids:
        return
    with database.write() as connection:
        connection.execute(
            update(shards)
            .where(shards.c.id.in_(shard_ids), shards.c.status == "queued")
            .values(published_at=None)
        )


def _alive() -> ColumnElement[bool]:
    return jobs.c.status.in_(LIVE_JOB)


def _take(database: Database, condition: ColumnElement[bool]) -> list[PublishableShard]:
    with database.write() as connection:
        rows = connection.execute(_candidates(condition)).all()
        if not rows:
            return []
        ids = [row.id for row in rows]
        connection.execute(
            update(shards).where(shards.c.id.in_(ids)).values(published_at=database_now())
        )
    return [
        PublishableShard(shard_id=row.id, model=row.model, priority=row.priority) for row in rows
    ]


def _candidates(condition: ColumnElement[bool]) -> Select[tuple[int, str, str]]:
    return (
        select(shards.c.id, jobs.c.model, jobs.c.priority)
        .join(jobs, shards.c.job_id == jobs.c.id)
        .where(IS_QUEUED, _alive(), condition)
        .order_by(shards.c.id)
        .limit(SHARDS_PER_TRANSACTION)
        .with_for_update(of=shards, skip_locked=True)
    )
