"""What happens to shards whose owner died, and to prompts that kill their worker."""

from __future__ import annotations

from sqlalchemy import Connection, case, func, insert, or_, select, true, update

from jobs.database import Database
from jobs.models import IS_RUNNING, database_now, shards
from jobs.store.completion_rows import insert_outcomes
from jobs.store.leases import (
    NO_LEASE,
    complete_job_if_done,
    death_counts,
    lock_job,
    pending_prompts,
)
from jobs.store.recording import counter_increments
from jobs.store.records import Claim, PendingPrompt, PromptOutcome


def requeue_expired(database: Database) -> list[int]:
    """Queue again the shards whose lease ran out or is missing; each counts as a crash."""
    with database.write() as connection:
        expires_at = shards.c.lease_expires_at
        # Only a ledger that was changed by hand or restored has one without a lease.
        is_over = or_(expires_at < database_now(), expires_at.is_(None))
        candidates = (
            select(shards.c.id).where(IS_RUNNING, is_over).with_for_update(skip_locked=True)
        )
        return list(
            connection.execute(
                update(shards)
                .where(shards.c.id.in_(candidates.scalar_subquery()))
                .values(
                    status="queued",
                    **death_counts(true()),
                    published_at=None,
                    **NO_LEASE,
                )
                .returning(shards.c.id)
            ).scalars()
        )


def isolate_poison(database: Database, claim: Claim, max_crashes: int) -> bool:
    """Deal with a shard that keeps killing its owners, before running it again.

    Once a shard of several unfinished prompts has cost max_crashes workers
    without a result in between, it is cut in halves; a half may cost one more
    before it is cut again, so a shard of 256 is down to its one bad prompt
    after 8 further deaths. A prompt that is alone gets max_crashes chances of
    its own and then fails with `worker_crashed`.

    Returns:
        True when the shard was dealt with and must not be run under this claim.
    """
    if claim.crashes < max_crashes:
        return False
    pending = pending_prompts(database, claim)
    if not pending:
        return False
    with database.write() as connection:
        lock_job(connection, claim.job_id)
        row = connection.execute(
            select(shards.c.last_error).where(
                shards.c.id == claim.shard_id,
                shards.c.attempt == claim.attempt,
                shards.c.status == "running",
            )
        ).one_or_none()
        if row is None:
            return True
        if len(pending) == 1:
            _fail_prompt(connection, claim, pending[0], row.last_error)
        else:
            _split(connection, claim, pending, max_crashes)
    return True


def fails_for_all(database: Database, claim: Claim, error: str, max_crashes: int) -> bool:
    """Whether an error that was caught must be the model's, and no prompt's.

    It is when prompts that have nothing to do with each other, those of
    different shards of a job or of the halves of one, fail with the same error,
    more often than one bad prompt among them explains, and the job has no
    completion yet.
    """
    with database.read() as connection:
        counts = connection.execute(
            select(
                func.sum(case((shards.c.last_error == error, 1), else_=0)),
                func.sum(case((shards.c.last_error == error, shards.c.crashes), else_=0)),
                func.sum(shards.c.completed_prompts),
            ).where(shards.c.job_id == claim.job_id)
        ).one()
    failing, crashes, completed = (int(count or 0) for count in counts)
    return failing > 1 and crashes >= 2 * max_crashes - 1 and completed == 0


def _fail_prompt(
    connection: Connection,
    claim: Claim,
    prompt: PendingPrompt,
    last_error: str | None,
) -> None:
    reason = f"; the last error was: {last_error}" if last_error else ""
    outcome = PromptOutcome.not_generated(
        prompt.index,
        claim.queued_seconds,
        code="worker_crashed",
        message=f"the worker died {claim.crashes} times on this prompt alone{reason}",
    )
    new = insert_outcomes(connection, claim, (outcome,), None)
    connection.execute(
        update(shards)
        .where(shards.c.id == claim.shard_id)
        .values(
            status="completed",
            finished_at=database_now(),
            **counter_increments(new),
            **NO_LEASE,
        )
    )
    complete_job_if_done(connection, claim.job_id)


def _split(
    connection: Connection, claim: Claim, pending: list[PendingPrompt], max_crashes: int
) -> None:
    middle = len(pending) // 2
    first_of_second_half = pending[middle].index

    def crashes_of(half: list[PendingPrompt]) -> int:
        return 0 if len(half) == 1 else max_crashes - 1

    connection.execute(
        update(shards)
        .where(shards.c.id == claim.shard_id)
        .values(
            status="queued",
            # So that an error which a half has is its own.
            last_error=None,
            last_index=first_of_second_half - 1,
            crashes=crashes_of(pending[:middle]),
            runs_alone=True,
            published_at=None,
            **NO_LEASE,
        )
    )
    connection.execute(
        insert(shards).values(
            job_id=claim.job_id,
            first_index=first_of_second_half,
            last_index=claim.last_index,
            status="queued",
            crashes=crashes_of(pending[middle:]),
            runs_alone=True,
            created_at=database_now(),
        )
    )
