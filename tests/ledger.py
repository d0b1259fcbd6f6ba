"""Jobs, claims and results in a few words, for tests of the ledger."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Any

from sqlalchemy import Select, func, select, update

from jobs.database import Database
from jobs.models import completions, database_now, jobs, micro_batches, shards
from jobs.prompts.parameters import PromptRequest
from jobs.store import leases, recording
from jobs.store.records import Claim, MicroBatchRecord, NewJob, PromptOutcome
from jobs.store.submission import submit_job

LEASE_SECONDS = 60.0


def new_job(total: int, **changes: Any) -> NewJob:
    values: dict[str, Any] = {
        "model": "tiny-bloom",
        "source_name": "prompts.jsonl",
        "content_digest": "d" * 64,
        "total_prompts": total,
        "parameters": {},
        "shard_size": 4,
    }
    return NewJob(**values | changes)


def requests(total: int, **changes: Any) -> list[PromptRequest]:
    values: dict[str, Any] = {"custom_id": None, "messages": None, "parameters": {}}
    return [
        PromptRequest(**values | {"line": index + 1, "prompt": f"prompt {index}"} | changes)
        for index in range(total)
    ]


def submit(database: Database, total: int = 4, **changes: Any) -> str:
    """A stored job of shards of four prompts; its id."""
    return submit_job(database, new_job(total, **changes), requests(total)).job_id


def shard_ids(database: Database, job_id: str) -> list[int]:
    return column(
        database, select(shards.c.id).where(shards.c.job_id == job_id).order_by(shards.c.id)
    )


def claim(
    database: Database,
    shard_id: int,
    *,
    worker: str = "worker-a",
    process: int = 100,
    lease_seconds: float = LEASE_SECONDS,
) -> Claim:
    """A claim that must succeed."""
    taken = try_claim(
        database, shard_id, worker=worker, process=process, lease_seconds=lease_seconds
    )
    assert taken is not None
    return taken


def try_claim(
    database: Database,
    shard_id: int,
    *,
    worker: str = "worker-a",
    process: int = 100,
    lease_seconds: float = LEASE_SECONDS,
) -> Claim | None:
    return leases.claim_shard(
        database, shard_id, worker_id=worker, process=process, lease_seconds=lease_seconds
    )


def submit_and_claim(database: Database, total: int = 4, **changes: Any) -> Claim:
    """A claim of the first shard of a new job."""
    job_id = submit(database, total, **changes)
    return claim(database, shard_ids(database, job_id)[0])


def outcome(index: int, error: str | None = None) -> PromptOutcome:
    """A result of 3 prompt tokens and 2 new ones, or an error."""
    return PromptOutcome(
        index=index,
        text=None if error else f"completion {index}",
        finish_reason=None if error else "stop",
        prompt_tokens=3,
        completion_tokens=0 if error else 2,
        queued_seconds=0.5,
        prefill_seconds=0.25,
        decode_seconds=1.0,
        error_code=error,
        error_message=f"it ended with {error}" if error else None,
    )


def batch(outcomes: Sequence[PromptOutcome], **changes: Any) -> MicroBatchRecord:
    values: dict[str, Any] = {
        "device": "cpu",
        "compute_mode": "llm_int8",
        "rows": len(outcomes),
        "prompt_tokens": 3 * len(outcomes),
        "completion_tokens": 2 * len(outcomes),
        "prefill_seconds": 0.25,
        "decode_seconds": 1.0,
        "out_of_memory_retries": 0,
        "outcomes": tuple(outcomes),
    }
    return MicroBatchRecord(**values | changes)


def record(
    database: Database,
    claimed: Claim,
    indices: Sequence[int],
    *,
    failing: Sequence[int] = (),
    error: str = "prompt_too_long",
) -> int:
    """Write a micro-batch of results; those in `failing` are errors."""
    outcomes = [outcome(index, error if index in failing else None) for index in indices]
    return recording.record_micro_batch(database, claimed, batch(outcomes), LEASE_SECONDS)


def work_through(database: Database, claimed: Claim, *, failing: Sequence[int] = ()) -> None:
    """Give every pending prompt of a claimed shard its result, and finish it."""
    pending = [prompt.index for prompt in leases.pending_prompts(database, claimed)]
    record(database, claimed, pending, failing=failing)
    leases.finish_shard(database, claimed)


def run_job(database: Database, job_id: str, *, failing: Sequence[int] = ()) -> None:
    """Do all the work that a job has left."""
    while (shard_id := leases.next_shard_of(database, job_id)) is not None:
        work_through(database, claim(database, shard_id), failing=failing)


def expire_lease(database: Database, shard_id: int) -> None:
    """As if the shard's owner had been silent for long."""
    with database.write() as connection:
        connection.execute(
            update(shards)
            .where(shards.c.id == shard_id)
            .values(lease_expires_at=database_now(-1.0))
        )


def shard(database: Database, shard_id: int) -> Any:
    with database.read() as connection:
        return connection.execute(select(shards).where(shards.c.id == shard_id)).one()


def column(database: Database, query: Select[Any]) -> list[Any]:
    with database.read() as connection:
        return list(connection.execute(query).scalars())


def results_of(database: Database, job_id: str) -> list[int]:
    """The indices that have a result, one entry for each result."""
    return column(
        database,
        select(completions.c.prompt_index)
        .where(completions.c.job_id == job_id)
        .order_by(completions.c.prompt_index),
    )


def count_micro_batches(database: Database) -> int:
    return int(column(database, select(func.count()).select_from(micro_batches))[0])


def at_once(*calls: Callable[[], Any]) -> list[Any]:
    """Run the calls in a thread each, started together; what each returned or raised."""
    barrier = threading.Barrier(len(calls))
    ended: list[Any] = [None] * len(calls)

    def run(place: int, call: Callable[[], Any]) -> None:
        barrier.wait()
        try:
            ended[place] = call()
        except Exception as error:
            ended[place] = error

    threads = [threading.Thread(target=run, args=(place, call)) for place, call in enumerate(calls)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return ended


def job_count(database: Database) -> int:
    """How many jobs the ledger holds."""
    with database.read() as connection:
        return connection.execute(select(func.count()).select_from(jobs)).scalar_one()
