"""A worker's verbs over a shard: claim it, renew its lease, finish it, give it back.

Every write is fenced: it names the lease's owner, process and attempt, and
changes nothing when another has taken the shard over in the meantime.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sqlalchemy import (
    ColumnElement,
    Connection,
    and_,
    case,
    func,
    or_,
    select,
    update,
)

from jobs.database import Database
from jobs.errors import LeaseLostError
from jobs.models import completions, database_now, jobs, prompts, shards
from jobs.store.records import Claim, PendingPrompt

LIVE_JOB = ("queued", "running")


def claim_shard(
    database: Database,
    shard_id: int,
    *,
    worker_id: str,
    process: int,
    lease_seconds: float,
    beside: Sequence[Claim] = (),
) -> Claim | None:
    """Take a shard if nobody has it; None for a duplicate or outdated message.

    A shard whose lease ran out may be taken, and so may one that another
    process of the same worker holds: a worker runs one child at a time, so
    that process is dead. Both count as a crash of the shard's last owner.

    Args:
        database: The ledger.
        shard_id: The shard.
        worker_id: Who takes it.
        process: The process of that worker that does.
        lease_seconds: For how long.
        beside: Claims of the same worker whose prompts will share batches with
            it. It is taken only if it waits and nothing speaks against it, and
            it and they are marked.
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
        queued = shards.c.status == "queued"
        takeable = and_(queued, may_run_beside()) if beside else or_(queued, abandoned)
        taken = connection.execute(
            update(shards)
            .where(shards.c.id == shard_id, takeable)
            .values(
                status="running",
                attempt=shards.c.attempt + 1,
                **death_counts(shards.c.status == "running"),
                beside_others=bool(beside),
                lease_owner=worker_id,
                lease_process=process,
                lease_expires_at=database_now(lease_seconds),
                started_at=func.coalesce(shards.c.started_at, database_now()),
            )
            .returning(shards)
        ).one_or_none()
        if taken is None:
            return None
        for claim in beside:
            connection.execute(update(shards).where(held_by(claim)).values(beside_others=True))
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
        load_crashes=taken.load_crashes,
        runs_alone=bool(taken.crashes or taken.load_crashes or taken.runs_alone),
        worker_id=worker_id,
        process=process,
        job_parameters=job.parameters,
        queued_seconds=max((now - job.created_at).total_seconds(), 0.0),
    )


def model_of(database: Database, shard_id: int) -> str | None:
    """The model of a shard that may have to be run; None for an outdated message."""
    with database.read() as connection:
        return connection.execute(
            select(jobs.c.model)
            .join(shards, shards.c.job_id == jobs.c.id)
            .where(shards.c.id == shard_id, shards.c.status.in_(("queued", "running")))
        ).scalar_one_or_none()


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
            # One that failed comes last: others may tell whether the model is at fault.
            .order_by(shards.c.crashes, shards.c.first_index)
            .limit(1)
        ).scalar_one_or_none()


def renew_lease(database: Database, claim: Claim, lease_seconds: float) -> bool:
    """Push the lease's end out; False when the shard is no longer ours."""
    with database.write() as connection:
        renewed = connection.execute(
            update(shards)
            .where(held_by(claim))
            .values(lease_expires_at=database_now(lease_seconds))
        )
        return renewed.rowcount == 1


def pending_prompts(database: Database, claim: Claim) -> list[PendingPrompt]:
    """The shard's prompts that have no result yet, in input order."""
    with database.read() as connection:
        # Two ranges of two primary keys, and not one anti-join: Postgres, which
        # knows nothing of a table that is being filled, reads all of the job's
        # completions for it, for every shard.
        done = set(
            connection.execute(
                select(completions.c.prompt_index).where(
                    completions.c.job_id == claim.job_id,
                    completions.c.prompt_index.between(claim.first_index, claim.last_index),
                )
            ).scalars()
        )
        rows = connection.execute(
            select(
                prompts.c.prompt_index, prompts.c.prompt, prompts.c.messages, prompts.c.parameters
            )
            .where(
                prompts.c.job_id == claim.job_id,
                prompts.c.prompt_index.between(claim.first_index, claim.last_index),
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
        if row.prompt_index not in done
    ]


def finish_shard(database: Database, claim: Claim) -> None:
    """All prompts of the shard have results: end it, and the job with its last shard.

    Raises:
        LeaseLostError: The shard belongs to somebody else.
    """
    with database.write() as connection:
        lock_job(connection, claim.job_id)
        ended = connection.execute(
            update(shards)
            .where(held_by(claim))
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
        error: Why the run failed, if it did; that counts as a crash, or where
            another shard may have been the cause, makes it run alone.
    """
    values: dict[str, Any] = {"status": "queued", "published_at": None, **NO_LEASE}
    if error is not None:
        beside = shards.c.beside_others
        values |= {
            "crashes": shards.c.crashes + case((beside, 0), else_=1),
            "runs_alone": or_(shards.c.runs_alone, beside),
            "last_error": error,
        }
    with database.write() as connection:
        released = connection.execute(update(shards).where(held_by(claim)).values(**values))
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


def set_loading(database: Database, claim: Claim, loading: bool) -> None:
    """Say that the owner loads the model for this shard, or that it has done so.

    Raises:
        LeaseLostError: The shard belongs to somebody else.
    """
    values = {"loading": True} if loading else {"loading": False, "load_crashes": 0}
    with database.write() as connection:
        if connection.execute(update(shards).where(held_by(claim)).values(**values)).rowcount != 1:
            raise LeaseLostError()


def death_counts(died: ColumnElement[bool]) -> dict[str, Any]:
    """How the counts of a shard grow if its last owner died, by what it was doing.

    Beside another shard's prompts it may be innocent: nothing is counted, but
    it is run alone from now on, so at most one death stays uncounted.
    """
    # An UPDATE's right-hand side sees the row as it was.
    blamed = and_(died, ~shards.c.loading, ~shards.c.beside_others)
    return {
        "crashes": shards.c.crashes + case((blamed, 1), else_=0),
        "load_crashes": shards.c.load_crashes + case((and_(died, shards.c.loading), 1), else_=0),
        "loading": False,
        "runs_alone": or_(shards.c.runs_alone, and_(died, shards.c.beside_others)),
    }


def may_run_beside() -> ColumnElement[bool]:
    """Of a shard: nobody died or failed with it, so it endangers no other."""
    return and_(shards.c.crashes == 0, shards.c.load_crashes == 0, ~shards.c.runs_alone)


NO_LEASE: dict[str, Any] = {
    "beside_others": False,
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
    held = select(shards.c.id).where(held_by(claim)).with_for_update(key_share=True)
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


def held_by(claim: Claim) -> ColumnElement[bool]:
    """The fence: this very claim of the shard, and no later one."""
    return and_(
        shards.c.id == claim.shard_id,
        shards.c.status == "running",
        shards.c.attempt == claim.attempt,
        shards.c.lease_owner == claim.worker_id,
        shards.c.lease_process == claim.process,
    )
