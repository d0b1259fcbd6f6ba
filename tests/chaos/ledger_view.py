"""What the fault suite reads of the ledger, while it is being broken."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from sqlalchemy import func, select

from jobs.database import Database
from jobs.errors import DatabaseUnavailableError
from jobs.models import completions, jobs, micro_batches, shards, workers


@dataclass(frozen=True, kw_only=True)
class Unfinished:
    """The prompts of a job without a result, by the state of their shard."""

    running: frozenset[int]
    queued: frozenset[int]


@dataclass(frozen=True, kw_only=True)
class Batch:
    """What the ledger keeps of memory that ran out in a window of an engine's work."""

    out_of_memory_retries: int
    row_capacity: int


class LedgerView:
    """Reads only, and often: a new connection costs Postgres more than a question.

    On SQLite every connection is its own, so that nothing of it lies on a disk
    that is filled or taken away.
    """

    def __init__(self, url: str) -> None:
        self._database = Database(url, pooled=not url.startswith("sqlite"))

    def job_status(self, job_id: str) -> str | None:
        """The job's status; None while the database does not answer."""
        try:
            return str(self._scalar(select(jobs.c.status).where(jobs.c.id == job_id)))
        except DatabaseUnavailableError:
            return None

    def job_count(self, idempotency_key: str) -> int:
        query = select(func.count()).where(jobs.c.idempotency_key == idempotency_key)
        return int(self._scalar(query))

    def unfinished(self, job_id: str, child: int | None = None) -> Unfinished:
        """The prompts without a result; as running only those that the child holds, if given."""
        with self._database.read() as connection:
            done = set(
                connection.execute(
                    select(completions.c.prompt_index).where(completions.c.job_id == job_id)
                ).scalars()
            )
            rows = connection.execute(
                select(shards).where(
                    shards.c.job_id == job_id, shards.c.status.in_(("running", "queued"))
                )
            ).all()
        held: dict[str, set[int]] = {"running": set(), "queued": set()}
        for row in rows:
            if child not in (None, row.lease_process) and row.status == "running":
                continue
            held[row.status].update(set(range(row.first_index, row.last_index + 1)) - done)
        return Unfinished(running=frozenset(held["running"]), queued=frozenset(held["queued"]))

    def queued_shards(self, job_id: str) -> list[int]:
        return self._column(
            select(shards.c.id).where(shards.c.job_id == job_id, shards.c.status == "queued")
        )

    def holders(self, job_id: str) -> set[int]:
        """The process ids of the workers that hold a shard of the job."""
        query = (
            select(workers.c.process)
            .join(shards, shards.c.lease_owner == workers.c.id)
            .where(shards.c.job_id == job_id, shards.c.status == "running")
        )
        return set(self._column(query))

    def result_count(self, job_id: str) -> int:
        query = select(func.count()).where(completions.c.job_id == job_id)
        return int(self._scalar(query))

    def counted_results(self, job_id: str) -> int:
        """How many results the counters of the job's shards say there are."""
        counted = func.sum(shards.c.completed_prompts + shards.c.failed_prompts)
        return int(self._scalar(select(counted).where(shards.c.job_id == job_id)))

    def batches(self, job_id: str) -> list[Batch]:
        """The job's micro-batches, oldest first."""
        columns = (micro_batches.c.out_of_memory_retries, micro_batches.c.row_capacity)
        query = select(*columns).where(micro_batches.c.job_id == job_id)
        with self._database.read() as connection:
            rows = connection.execute(query.order_by(micro_batches.c.id)).all()
        return [Batch(**row._asdict()) for row in rows]

    def stale_writes(self, job_id: str) -> int:
        """Shards where an earlier claim wrote a result after a later claim had.

        The database stamps the moments, so this is the fence, seen from outside.
        """
        query = (
            select(
                completions.c.shard_id,
                completions.c.attempt,
                func.min(completions.c.created_at).label("first"),
                func.max(completions.c.created_at).label("last"),
            )
            .where(completions.c.job_id == job_id)
            .group_by(completions.c.shard_id, completions.c.attempt)
            .order_by(completions.c.shard_id, completions.c.attempt)
        )
        with self._database.read() as connection:
            rows = connection.execute(query).all()
        return sum(
            earlier.shard_id == later.shard_id and earlier.last > later.first
            for earlier, later in pairwise(rows)
        )

    def close(self) -> None:
        self._database.close()

    def _scalar(self, query: Any) -> Any:
        with self._database.read() as connection:
            return connection.execute(query).scalar_one()

    def _column(self, query: Any) -> list[Any]:
        with self._database.read() as connection:
            return list(connection.execute(query).scalars())
