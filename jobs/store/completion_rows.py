"""Inserting results: those of a micro-batch at once, each prompt's once."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import cache
from typing import Any

from sqlalchemy import (
    JSON,
    Connection,
    Executable,
    Text,
    bindparam,
    cast,
    column,
    func,
    insert,
    select,
)
from sqlalchemy.dialects import postgresql

from jobs.models import completions, database_now
from jobs.store.records import Claim, PromptOutcome
from jobs.store.results import OUTCOME_COLUMNS

# The same for all rows of a micro-batch.
CLAIM_COLUMNS = (
    completions.c.job_id,
    completions.c.shard_id,
    completions.c.micro_batch_id,
    completions.c.attempt,
    completions.c.worker_id,
)


def insert_outcomes(
    connection: Connection,
    claim: Claim,
    outcomes: Sequence[PromptOutcome],
    micro_batch_id: int | None,
) -> list[PromptOutcome]:
    """Insert results, skipping prompts that have one; returns those inserted.

    The caller holds the shard's row locked, so nobody else writes results of
    its prompts meanwhile.
    """
    if not outcomes:
        return []
    of_all = {
        "job_id": claim.job_id,
        "shard_id": claim.shard_id,
        "micro_batch_id": micro_batch_id,
        "attempt": claim.attempt,
        "worker_id": claim.worker_id,
    }
    if connection.dialect.name == "postgresql":
        return _insert_as_one(connection, of_all, outcomes)
    return _insert_each(connection, of_all, outcomes)


def _insert_as_one(
    connection: Connection, of_all: dict[str, Any], outcomes: Sequence[PromptOutcome]
) -> list[PromptOutcome]:
    # Not escaped to ASCII, which only a database in UTF-8 could undo.
    rows = json.dumps([_values(outcome) for outcome in outcomes], ensure_ascii=False)
    inserted = set(connection.execute(_insert_rows_of_json(), {"rows": rows, **of_all}).scalars())
    return [outcome for outcome in outcomes if outcome.index in inserted]


@cache
def _insert_rows_of_json() -> Executable:
    """INSERT ... SELECT from one JSON parameter, for Postgres.

    A statement a row, even when all are sent in one go, took twice as long:
    the server runs each by itself and psycopg binds each by itself.
    """
    rows = (
        func.json_to_recordset(cast(bindparam("rows", type_=Text), JSON))
        .table_valued(*[column(each.name, each.type) for each in OUTCOME_COLUMNS])
        .render_derived(name="given", with_types=True)
    )
    selected = select(
        *[rows.c[each.name] for each in OUTCOME_COLUMNS],
        *[bindparam(each.name, type_=each.type) for each in CLAIM_COLUMNS],
        database_now(),
    )
    names = [
        *(each.name for each in (*OUTCOME_COLUMNS, *CLAIM_COLUMNS)),
        completions.c.created_at.name,
    ]
    return (
        postgresql.insert(completions)
        .from_select(names, selected, include_defaults=False)
        .on_conflict_do_nothing()
        .returning(completions.c.prompt_index)
    )


def _insert_each(
    connection: Connection, of_all: dict[str, Any], outcomes: Sequence[PromptOutcome]
) -> list[PromptOutcome]:
    indexes = [outcome.index for outcome in outcomes]
    # A range, since a list of many values takes longer to put into words than to read.
    there = set(
        connection.execute(
            select(completions.c.prompt_index).where(
                completions.c.job_id == of_all["job_id"],
                completions.c.prompt_index.between(min(indexes), max(indexes)),
            )
        ).scalars()
    )
    new = [outcome for outcome in outcomes if outcome.index not in there]
    if new:
        connection.execute(
            insert(completions).values(created_at=database_now()),
            [_values(outcome) | of_all for outcome in new],
        )
    return new


def _values(outcome: PromptOutcome) -> dict[str, Any]:
    return {
        "prompt_index": outcome.index,
        "text": outcome.text,
        "finish_reason": outcome.finish_reason,
        "error_code": outcome.error_code,
        "error_message": outcome.error_message,
        "prompt_tokens": outcome.prompt_tokens,
        "completion_tokens": outcome.completion_tokens,
        "queued_seconds": outcome.queued_seconds,
        "prefill_seconds": outcome.prefill_seconds,
        "decode_seconds": outcome.decode_seconds,
        "first_token_seconds": outcome.first_token_seconds,
        "logprobs": outcome.logprobs,
    }
