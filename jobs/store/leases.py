"""A worker's verbs: claim a shard, renew its lease, record results, finish, give back.

Every write is fenced: it names the lease's owner, process and attempt, and
changes nothing when another has taken the shard over in the meantime.
"""

from __future__ import annotations

from typing import Any

from sqlalchemy import (
    ColumnElement,
    Connection,
    and_,
    case,
    delete,
    func,
    insert,
    or_,
    select,
    update,
)

from jobs.database import Database
from jobs.errors import LeaseLostError
from jobs.models import completions, database_now, jobs, micro_batches, prompts, shards
from jobs.store.records import Claim, MicroBatchRecord, PendingPrompt, PromptOutcome

LIVE_JOB = ("queued", "running")


def claim_shard(
    database: Database, shard_id: int, *, worker_id: str, process: int, lease_seconds: float
) -> Claim | None:
    """Take a shard if nobody has it; None for a duplicate or outdated message.

    A shard whose lease ran out may be taken, and so may one that another
    process of the same worker holds: a worker runs one child at a time, so
    that process is dead. Both count as a crash of the shard's last owner.
    """
    with database.write() as connection:
        job_id = connection.execute(
            select(shards.c.job_id).where(shards.c.id == shard_id)
        ).scalar_one_or_none()
        if job_id is None:
            return None
        job = lock_job(connection, job_id)
        if job.status not in LIVE_JOB:
            return None
        abandoned = and_(
            shards.c.status == "running",
            or_(
                shards.c.lease_expires_at < database_now(),
                and_(shards.c.lease_owner == worker_id, shards.c.lease_process != process),
            ),
        )
        taken = connection.execute(
            update(shards)
            .where(shards.c.id == shard_id, or_(shards.c.status == "queued", abandoned))
            .values(
                status="running",
                attempt=shards.c.attempt + 1,
                # The old row's status is what an UPDATE's right-hand side sees.
                crashes=shards.c.crashes + case((shards.c.status == "running", 1), else_=0),
                lease_owner=worker_id,
                lease_process=process,
                lease_expires_at=database_now(lease_seconds),
                started_at=func.coalesce(shards.c.started_at, database_now()),
            )
            .returning(shards)
        ).one_or_none()
        if taken is None:
            return None
        if job.status == "queued":
            connection.execute(
                update(jobs)
                .where(jobs.c.id == job_id)
                .values(
                    status="running", started_at=func.coalesce(jobs.c.started_at, database_now())
                )
            )
        now = connection.execute(select(database_now())).scalar_one()
    return Claim(
        shard_id=shard_id,
        job_id=job_id,
        model=job.model,
        first_index=taken.first_index,
        last_index=taken.last_index,
        attempt=taken.attempt,
        crashes=taken.crashes,
        worker_id=worker_id,
        process=process,
        job_parameters=job.parameters,
        queued_seconds=max((now - job.created_at).total_seconds(), 0.0),
    )


def next_shard_of(database: Database, job_id: str) -> int | None:
    """The first shard of a job that can be claimed now, for a run without a queue."""
    with database.read() as connection:
        return connection.execute(
            select(shards.c.id)
            .where(
                shards.c.job_id == job_id,
                or_(
                    shards.c.status == "queued",
                    and_(shards.c.status == "running", shards.c.lease_expires_at < database_now()),
                ),
            )
            .order_by(shards.c.first_index)
            .limit(1)
        ).scalar_one_or_none()


def renew_lease(database: Database, claim: Claim, lease_seconds: float) -> bool:
    """Push the lease's end out; False when the shard is no longer ours."""
    with database.write() as connection:
        renewed = connection.execute(
            update(shards).where(_held(claim)).values(lease_expires_at=database_now(lease_seconds))
        )
        return renewed.rowcount == 1


def pending_prompts(database: Database, claim: Claim) -> list[PendingPrompt]:
    """The shard's prompts that have no result yet, in input order."""
    done = (
        select(completions.c.prompt_index)
        .where(
            completions.c.job_id == prompts.c.job_id,
            completions.c.prompt_index == prompts.c.prompt_index,
        )
        .exists()
    )
    with database.read() as connection:
        rows = connection.execute(
            select(
                prompts.c.prompt_index, prompts.c.prompt, prompts.c.messages, prompts.c.parameters
            )
            .where(
                prompts.c.job_id == claim.job_id,
                prompts.c.prompt_index.between(claim.first_index, claim.last_index),
                ~done,
            )
            .order_by(prompts.c.prompt_index)
        ).all()
    return [
        PendingPrompt(
            index=row.prompt_index,
            prompt=row.prompt,
            messages=row.messages,
            parameters=row.parameters,
        )
        for row in rows
    ]


def record_micro_batch(
    database: Database, claim: Claim, batch: MicroBatchRecord, lease_seconds: float
) -> int:
    """Write results and timings of rows that are finished; also renews the lease.

    Returns:
        How many results were new: a prompt that has one already keeps it.

    Raises:
        LeaseLostError: The shard belongs to somebody else; nothing was written.
    """
    with database.write() as connection:
        lock_held_shard(connection, claim)
        micro_batch_id = _insert_micro_batch(connection, claim, batch) if batch.rows else None
        new = insert_outcomes(connection, claim, batch.outcomes, micro_batch_id)
        if batch.outcomes and not new:
            # This very batch is in already: its first commit succeeded, but the
            # connection broke before the worker heard of it.
            connection.execute(delete(micro_batches).where(micro_batches.c.id == micro_batch_id))
            return 0
        seconds = batch.prefill_seconds + batch.decode_seconds
        connection.execute(
            update(shards)
            .where(shards.c.id == claim.shard_id)
            .values(
                lease_expires_at=database_now(lease_seconds),
                prefill_seconds=shards.c.prefill_seconds + batch.prefill_seconds,
                decode_seconds=shards.c.decode_seconds + batch.decode_seconds,
                generating_since=func.coalesce(shards.c.generating_since, database_now(-seconds)),
                generated_until=database_now(),
                # Deaths are counted from the last result on: a prompt that is
                # left over must not be blamed for those it had company in.
                **({"crashes": 0} if new else {}),
                **counter_increments(new),
            )
        )
    return len(new)


def finish_shard(database: Database, claim: Claim) -> None:
    """All prompts of the shard have results: end it, and the job with its last shard.

    Raises:
        LeaseLostError: The shard belongs to somebody else.
    """
    with database.write() as connection:
        lock_job(connection, claim.job_id)
        ended = connection.execute(
            update(shards)
            .where(_held(claim))
            .values(status="completed", finished_at=database_now(), **NO_LEASE)
        )
        if ended.rowcount != 1:
            raise LeaseLostError()
        complete_job_if_done(connection, claim.job_id)


def release_shard(database: Database, claim: Claim, *, error: str | None = None) -> bool:
    """Give an unfinished shard back to the queue; False when it was not ours any more.

    Args:
        database: The ledger.
        claim: The lease to give up.
        error: Why the run failed, if it did; that counts as a crash.
    """
    values: dict[str, Any] = {"status": "queued", "published_at": None, **NO_LEASE}
    if error is not None:
        values |= {"crashes": shards.c.crashes + 1, "last_error": error}
    with database.write() as connection:
        released = connection.execute(update(shards).where(_held(claim)).values(**values))
        return released.rowcount == 1


def fail_job(database: Database, claim: Claim, *, code: str, message: str) -> None:
    """End the claim's job as failed: its model cannot be used here.

    Raises:
        LeaseLostError: The shard belongs to somebody else.
    """
    with database.write() as connection:
        lock_job(connection, claim.job_id)
        lock_held_shard(connection, claim)
        connection.execute(
            update(shards)
            .where(shards.c.job_id == claim.job_id, shards.c.status.in_(("queued", "running")))
            .values(status="failed", finished_at=database_now(), **NO_LEASE)
        )
        connection.execute(
            update(jobs)
            .where(jobs.c.id == claim.job_id)
            .values(
                status="failed",
                error_code=code,
                error_message=message,
                finished_at=database_now(),
            )
        )


NO_LEASE: dict[str, None] = {
    "lease_owner": None,
    "lease_process": None,
    "lease_expires_at": None,
}


def lock_job(connection: Connection, job_id: str) -> Any:
    """The job's row, kept from changing until the transaction ends.

    FOR NO KEY UPDATE on Postgres: inserting a completion takes a key share of
    the job's row and must not wait for us.
    """
    return connection.execute(
        select(jobs).where(jobs.c.id == job_id).with_for_update(key_share=True)
    ).one()


def lock_held_shard(connection: Connection, claim: Claim) -> None:
    """Keep the claim's shard ours until the transaction ends.

    Raises:
        LeaseLostError: It is not ours any more.
    """
    held = select(shards.c.id).where(_held(claim)).with_for_update(key_share=True)
    if connection.execute(held).one_or_none() is None:
        raise LeaseLostError()


def complete_job_if_done(connection: Connection, job_id: str) -> None:
    """End the job, whose row the caller holds locked, if its last shard has ended."""
    unfinished = (
        select(shards.c.id).where(shards.c.job_id == job_id, shards.c.status != "completed")
    ).exists()
    connection.execute(
        update(jobs)
        .where(jobs.c.id == job_id, jobs.c.status.in_(LIVE_JOB), ~unfinished)
        .values(status="completed", finished_at=database_now())
    )


def insert_outcomes(
    connection: Connection,
    claim: Claim,
    outcomes: tuple[PromptOutcome, ...],
    micro_batch_id: int | None,
) -> list[PromptOutcome]:
    """Insert results, skipping prompts that have one; returns those inserted.

    The caller holds the shard's row locked, so nobody else writes results of
    its prompts meanwhile.
    """
    indexes = [outcome.index for outcome in outcomes]
    there = set(
        connection.execute(
            select(completions.c.prompt_index).where(
                completions.c.job_id == claim.job_id,
                completions.c.prompt_index.in_(indexes),
            )
        ).scalars()
    )
    new = [outcome for outcome in outcomes if outcome.index not in there]
    if not new:
        return []
    rows = [
        {
            "job_id": claim.job_id,
            "prompt_index": outcome.index,
            "shard_id": claim.shard_id,
            "micro_batch_id": micro_batch_id,
            "text": outcome.text,
            "finish_reason": outcome.finish_reason,
            "error_code": outcome.error_code,
            "error_message": outcome.error_message,
            "prompt_tokens": outcome.prompt_tokens,
            "completion_tokens": outcome.completion_tokens,
            "queued_seconds": outcome.queued_seconds,
            "prefill_seconds": outcome.prefill_seconds,
            "decode_seconds": outcome.decode_seconds,
            "attempt": claim.attempt,
            "worker_id": claim.worker_id,
        }
        for outcome in new
    ]
    # Plain rows, sent in one go: with RETURNING, SQLAlchemy writes a statement of
    # 16 parameters a row, which psycopg takes longer to parse than Postgres to run.
    connection.execute(
        insert(completions).values(created_at=database_now()),
        rows,
    )
    return new


def counter_increments(new: list[PromptOutcome]) -> dict[str, Any]:
    """What results that were just inserted add to their shard; tokens of failures do not count."""
    completed = [outcome for outcome in new if outcome.error_code is None]
    return {
        "completed_prompts": shards.c.completed_prompts + len(completed),
        "failed_prompts": shards.c.failed_prompts + len(new) - len(completed),
        "prompt_tokens": shards.c.prompt_tokens + sum(each.prompt_tokens for each in completed),
        "completion_tokens": shards.c.completion_tokens
        + sum(each.completion_tokens for each in completed),
    }


def _insert_micro_batch(connection: Connection, claim: Claim, batch: MicroBatchRecord) -> int:
    micro_batch_id: int = connection.execute(
        insert(micro_batches)
        .values(
            job_id=claim.job_id,
            shard_id=claim.shard_id,
            worker_id=claim.worker_id,
            attempt=claim.attempt,
            device=batch.device,
            compute_mode=batch.compute_mode,
            rows=batch.rows,
            prompt_tokens=batch.prompt_tokens,
            completion_tokens=batch.completion_tokens,
            prefill_seconds=batch.prefill_seconds,
            decode_seconds=batch.decode_seconds,
            out_of_memory_retries=batch.out_of_memory_retries,
            created_at=database_now(),
        )
        .returning(micro_batches.c.id)
    ).scalar_one()
    return micro_batch_id


def _held(claim: Claim) -> ColumnElement[bool]:
    return and_(
        shards.c.id == claim.shard_id,
        shards.c.status == "running",
        shards.c.attempt == claim.attempt,
        shards.c.lease_owner == claim.worker_id,
        shards.c.lease_process == claim.process,
    )
