"""Results go into the ledger: a micro-batch at a time, each prompt once."""

from __future__ import annotations

from typing import Any

from sqlalchemy import Connection, insert, update

from jobs.database import Database
from jobs.models import database_now, micro_batches, shards
from jobs.store.completion_rows import insert_outcomes
from jobs.store.leases import lock_held_shard
from jobs.store.records import Claim, MicroBatchRecord, PromptOutcome


def record_micro_batch(
    database: Database, claim: Claim, batch: MicroBatchRecord, lease_seconds: float
) -> int:
    """Write results and timings of rows that are finished; also renews the lease.

    Returns:
        How many results were new: a prompt that has one already keeps it.

    Raises:
        LeaseLostError: The shard belongs to somebody else; nothing was written.
    """
    try:
        with database.write() as connection:
            return _record(connection, claim, batch, lease_seconds)
    except _AlreadyWrittenError:
        return 0


class _AlreadyWrittenError(Exception):
    """This very batch is in: its commit succeeded, but the connection broke before we heard."""


def _record(
    connection: Connection, claim: Claim, batch: MicroBatchRecord, lease_seconds: float
) -> int:
    lock_held_shard(connection, claim)
    micro_batch_id = _insert_micro_batch(connection, claim, batch) if batch.rows else None
    new = insert_outcomes(connection, claim, batch.outcomes, micro_batch_id)
    if batch.outcomes and not new:
        # Undone by the rollback: a DELETE would look for completions of that
        # batch, which no index leads to.
        raise _AlreadyWrittenError
    connection.execute(
        update(shards)
        .where(shards.c.id == claim.shard_id)
        .values(
            lease_expires_at=database_now(lease_seconds),
            prefill_seconds=shards.c.prefill_seconds + batch.prefill_seconds,
            decode_seconds=shards.c.decode_seconds + batch.decode_seconds,
            # Deaths are counted from the last result on: a prompt that is
            # left over must not be blamed for those it had company in.
            **({"crashes": 0} if new else {}),
            **counter_increments(new),
        )
    )
    return len(new)


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
            steps=batch.steps,
            row_steps=batch.row_steps,
            row_capacity=batch.row_capacity,
            streamed_bytes=batch.streamed_bytes,
            link_wait_seconds=batch.link_wait_seconds,
            compute_seconds=batch.compute_seconds,
            created_at=database_now(),
        )
        .returning(micro_batches.c.id)
    ).scalar_one()
    return micro_batch_id
