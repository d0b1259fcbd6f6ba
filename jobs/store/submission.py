"""A validated prompt file becomes a job, whole or not at all."""

from __future__ import annotations

import secrets
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Any

from sqlalchemy import Connection, insert, select
from sqlalchemy.exc import IntegrityError

from jobs.database import Database
from jobs.errors import BadInputError, IdempotencyConflictError
from jobs.models import database_now, jobs, prompts, shards
from jobs.prompts.parameters import PromptRequest
from jobs.store.records import NewJob, Submission

# No 0/o, 1/i/l, u/v: an id is read aloud and typed.
ID_ALPHABET = "23456789abcdefghjkmnpqrstwxyz"
ID_LENGTH = 8
ROWS_PER_INSERT = 5_000


def submit_job(database: Database, job: NewJob, requests: Iterable[PromptRequest]) -> Submission:
    """Store a job with its shards and prompts in one transaction.

    Args:
        database: The ledger.
        job: What to store; total_prompts must be the number of requests.
        requests: The prompts in input order, streamed.

    Raises:
        IdempotencyConflictError: The key is in use for other prompts or parameters.
        BadInputError: The file gave another number of prompts than it did when
            it was validated.
    """
    if job.idempotency_key is not None:
        earlier = _job_with_key(database, job)
        if earlier is not None:
            return earlier
    job_id = new_job_id()
    try:
        with database.write() as connection:
            _insert_job(connection, job_id, job)
            _insert_shards(connection, job_id, job)
            stored = _insert_prompts(connection, job_id, requests)
            if stored != job.total_prompts:
                raise BadInputError(
                    f"{job.source_name}: it changed while it was read "
                    f"({job.total_prompts} prompts, then {stored}); nothing was stored"
                )
    except IntegrityError:
        # Two submits with one key at once: the other one won.
        earlier = _job_with_key(database, job) if job.idempotency_key is not None else None
        if earlier is None:
            raise
        return earlier
    return Submission(job_id=job_id, created=True)


def new_job_id() -> str:
    return "".join(secrets.choice(ID_ALPHABET) for _ in range(ID_LENGTH))


def _job_with_key(database: Database, job: NewJob) -> Submission | None:
    columns = (jobs.c.id, jobs.c.content_digest, jobs.c.model, jobs.c.parameters)
    with database.read() as connection:
        row = connection.execute(
            select(*columns).where(jobs.c.idempotency_key == job.idempotency_key)
        ).one_or_none()
    if row is None:
        return None
    if (row.content_digest, row.model, row.parameters) != (
        job.content_digest,
        job.model,
        job.parameters,
    ):
        raise IdempotencyConflictError(
            f"idempotency key {job.idempotency_key!r} belongs to job {row.id}, which has other "
            "prompts, another model or other parameters: use a new key for a new job"
        )
    return Submission(job_id=row.id, created=False)


def _insert_job(connection: Connection, job_id: str, job: NewJob) -> None:
    connection.execute(
        insert(jobs).values(
            id=job_id,
            name=job.name,
            model=job.model,
            status="queued",
            priority=job.priority,
            parameters=job.parameters,
            source_name=job.source_name,
            content_digest=job.content_digest,
            idempotency_key=job.idempotency_key,
            shard_size=job.shard_size,
            total_prompts=job.total_prompts,
            created_at=database_now(),
        )
    )


def _insert_shards(connection: Connection, job_id: str, job: NewJob) -> None:
    created_at = connection.execute(select(database_now())).scalar_one()
    rows = [
        {
            "job_id": job_id,
            "first_index": first,
            "last_index": min(first + job.shard_size, job.total_prompts) - 1,
            "status": "queued",
            "created_at": created_at,
        }
        for first in range(0, job.total_prompts, job.shard_size)
    ]
    connection.execute(insert(shards), rows)


def _insert_prompts(connection: Connection, job_id: str, requests: Iterable[PromptRequest]) -> int:
    statement = insert(prompts)
    stored = 0
    for rows in _chunks(_prompt_rows(job_id, requests), ROWS_PER_INSERT):
        connection.execute(statement, rows)
        stored += len(rows)
    return stored


def _prompt_rows(job_id: str, requests: Iterable[PromptRequest]) -> Iterator[dict[str, Any]]:
    for index, request in enumerate(requests):
        yield {
            "job_id": job_id,
            "prompt_index": index,
            "custom_id": request.custom_id,
            "prompt": request.prompt,
            "messages": request.messages,
            "parameters": request.parameters or None,
        }


def _chunks(rows: Iterator[dict[str, Any]], size: int) -> Iterator[list[dict[str, Any]]]:
    while chunk := list(islice(rows, size)):
        yield chunk
