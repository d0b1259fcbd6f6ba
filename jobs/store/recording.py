"""Results go into the ledger: a micro-batch at a time, each prompt once."""

from __future__ import annotations

from typing import Any

from sqlalchemy import Column, Connection, insert, literal, select, update

from jobs.database import Database
from jobs.errors import LeaseLostError
from jobs.models import database_now, micro_batches, shards
from jobs.store.completion_rows import insert_outcomes
from jobs.store.leases import held_by, lock_held_shard
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
    micro_batch_id = None
    if batch.rows:
        micro_batch_id = _insert_micro_batch(connection, claim, batch)
    else:
        lock_held_shard(connection, claim)
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
    """Insert the row of a window, and keep the shard ours until the transaction ends.

    In one statement, since each is a journey to the server and back.

    Raises:
        LeaseLostError: It is not ours any more.
    """
    columns = micro_batches.c
    values: dict[Column[Any], Any] = {
        columns.job_id: claim.job_id,
        columns.shard_id: claim.shard_id,
        columns.worker_id: claim.worker_id,
        columns.attempt: claim.attempt,
        columns.device: batch.device,
        columns.compute_mode: batch.compute_mode,
        columns.rows: batch.rows,
        columns.prompt_tokens: batch.prompt_tokens,
        columns.completion_tokens: batch.completion_tokens,
        columns.prefill_seconds: batch.prefill_seconds,
        columns.decode_seconds: batch.decode_seconds,
        columns.out_of_memory_retries: batch.out_of_memory_retries,
        columns.steps: batch.steps,
        columns.row_steps: batch.row_steps,
        columns.row_capacity: batch.row_capacity,
        columns.streamed_bytes: batch.streamed_bytes,
        columns.link_wait_seconds: batch.link_wait_seconds,
        columns.compute_seconds: batch.compute_seconds,
    }
    held = select(
        *[literal(value, column.type) for column, value in values.items()], database_now()
    )
    held = held.where(held_by(claim)).with_for_update(of=shards, key_share=True)
    names = [*(column.name for column in values), columns.created_at.name]
    micro_batch_id: int | None = connection.execute(
        insert(micro_batches).from_select(names, held, include_defaults=False).returning(columns.id)
    ).scalar_one_or_none()
    if micro_batch_id is None:
        raise LeaseLostError()
    return micro_batch_id
