"""The queries of the hot path find their rows by an index, however large the ledger.

A worker runs these for every micro-batch and every lease; a ledger holds
millions of prompts of jobs that ended long ago. SQLite's planner is asked,
without statistics, as on a fresh database.

Allowed: a look-up by primary key or index, and walking a range of one
(`SEARCH ... USING ...`), also of a whole queue's status, since that is what is
being asked for. Not allowed: reading a table from end to end (`SCAN`), nor
sorting a page in memory (`TEMP B-TREE`), which would read it whole first.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from sqlalchemy import event

from jobs.database import Database
from jobs.store import joining, leases, publishing, reading, recovery
from jobs.store.records import Claim
from jobs.store.results import result_rows
from tests.ledger import LEASE_SECONDS, record, submit, submit_and_claim, try_claim

pytestmark = pytest.mark.integration

Statement = tuple[str, Any]


def statements_of(database: Database, run: Callable[[], object]) -> list[Statement]:
    """The statements that a call executes, with their parameters."""
    seen: list[Statement] = []

    def note(_connection: Any, _cursor: Any, statement: str, parameters: Any, *_: Any) -> None:
        if statement.split(maxsplit=1)[0] in ("SELECT", "UPDATE", "INSERT", "DELETE", "WITH"):
            seen.append((statement, parameters))

    engines = {database._writer, database._reader}
    for engine in engines:
        event.listen(engine, "before_cursor_execute", note)
    try:
        run()
    finally:
        for engine in engines:
            event.remove(engine, "before_cursor_execute", note)
    return seen


def plan_of(database: Database, run: Callable[[], object]) -> list[str]:
    """What SQLite does for the statements of a call."""
    statements = statements_of(database, run)
    assert statements, "the call must have asked the database something"
    with database.read() as connection:
        return [
            f"{row.detail}   <- {statement}"
            for statement, parameters in statements
            for row in connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {statement}", parameters)
        ]


def claim_it(database: Database, held: Claim) -> object:
    return try_claim(database, held.shard_id + 1, worker="another")


def record_it(database: Database, held: Claim) -> object:
    return record(database, held, [0, 1])


def renew_it(database: Database, held: Claim) -> object:
    return leases.renew_lease(database, held, LEASE_SECONDS)


def read_pending(database: Database, held: Claim) -> object:
    return leases.pending_prompts(database, held)


def finish_it(database: Database, held: Claim) -> None:
    leases.finish_shard(database, held)


def release_it(database: Database, held: Claim) -> object:
    return leases.release_shard(database, held)


def next_of_job(database: Database, held: Claim) -> object:
    return leases.next_shard_of(database, held.job_id)


def read_results(database: Database, held: Claim) -> object:
    return list(result_rows(database, held.job_id))


def read_failed(database: Database, held: Claim) -> object:
    return list(result_rows(database, held.job_id, failed_only=True))


def requeue(database: Database, held: Claim) -> object:
    return recovery.requeue_expired(database)


def publish_job(database: Database, held: Claim) -> object:
    return publishing.take_unpublished(database, held.job_id)


def publish_all(database: Database, held: Claim) -> object:
    return publishing.take_unpublished(database)


def publish_stale(database: Database, held: Claim) -> object:
    return publishing.take_stale(database, "tiny-bloom", 60.0)


def report(database: Database, held: Claim) -> object:
    return reading.job_report(database, held.job_id)


def steps_of_job(database: Database, held: Claim) -> object:
    return reading.step_report(database, held.job_id)


def next_to_join(database: Database, held: Claim) -> object:
    return joining.shard_to_join(database, held.model)


def who_else_waits(database: Database, held: Claim) -> object:
    return joining.priority_waiting(database, ["tiny-flan", "null"])


def join_it(database: Database, held: Claim) -> object:
    return leases.claim_shard(
        database,
        held.shard_id + 1,
        worker_id=held.worker_id,
        process=held.process,
        lease_seconds=LEASE_SECONDS,
        beside=[held],
    )


@pytest.fixture
def held(sqlite_database: Database) -> Claim:
    """A claim in a ledger that holds more than its job."""
    submit(sqlite_database, 8)
    return submit_and_claim(sqlite_database, 8)


@pytest.mark.parametrize(
    "call",
    [
        claim_it,
        record_it,
        renew_it,
        read_pending,
        finish_it,
        release_it,
        next_of_job,
        read_results,
        read_failed,
        requeue,
        publish_job,
        publish_all,
        publish_stale,
        report,
        steps_of_job,
        next_to_join,
        who_else_waits,
        join_it,
    ],
)
def test_no_table_is_read_from_end_to_end(
    sqlite_database: Database, held: Claim, call: Callable[[Database, Claim], object]
) -> None:
    plan = plan_of(sqlite_database, lambda: call(sqlite_database, held))
    assert [step for step in plan if step.startswith("SCAN") and not is_harmless(step)] == []


def is_harmless(step: str) -> bool:
    """Steps that read no table.

    A SUBQUERY is the one row of a job's sums. An INSERT into micro_batches is
    said to scan their children, which it does only in a transaction that has
    broken a deferred foreign key, and there is none that is deferred.
    """
    return (
        "CONSTANT ROW" in step
        or step.startswith("SCAN sums")
        or step.startswith("SCAN completions   <- INSERT INTO micro_batches")
    )


@pytest.mark.parametrize("call", [read_pending, read_results, read_failed])
def test_a_page_in_input_order_is_not_sorted(
    sqlite_database: Database, held: Claim, call: Callable[[Database, Claim], object]
) -> None:
    plan = plan_of(sqlite_database, lambda: call(sqlite_database, held))
    assert [step for step in plan if "TEMP B-TREE" in step] == []


def test_a_query_that_reads_a_table_whole_is_noticed(sqlite_database: Database) -> None:
    # So that the tests above can fail.
    plan = plan_of(
        sqlite_database, lambda: reading.find_job(sqlite_database, submit(sqlite_database)[:4])
    )
    assert any(step.startswith("SCAN jobs") for step in plan)
