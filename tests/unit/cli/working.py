"""What a worker would write into the ledger, without one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from jobs.database import Database
from jobs.store.leases import claim_shard, finish_shard, next_shard_of
from jobs.store.recording import record_micro_batch
from jobs.store.records import Claim, MicroBatchRecord, PromptOutcome

LEASE_SECONDS = 60.0


def claim_next(database: Database, job_id: str) -> Claim:
    shard_id = next_shard_of(database, job_id)
    assert shard_id is not None
    claim = claim_shard(database, shard_id, worker_id="w1", process=1, lease_seconds=LEASE_SECONDS)
    assert claim is not None
    return claim


def completed(index: int, text: str = "done", **more: Any) -> PromptOutcome:
    return PromptOutcome(
        index=index,
        text=text,
        finish_reason="stop",
        prompt_tokens=3,
        completion_tokens=5,
        queued_seconds=1.5,
        prefill_seconds=0.25,
        decode_seconds=0.5,
        first_token_seconds=0.75,
        **more,
    )


def failed(index: int) -> PromptOutcome:
    return PromptOutcome(
        index=index,
        text=None,
        finish_reason=None,
        prompt_tokens=0,
        completion_tokens=0,
        queued_seconds=1.5,
        prefill_seconds=0.0,
        decode_seconds=0.0,
        error_code="prompt_too_long",
        error_message="2100 tokens; the model takes 2048",
    )


def record(
    database: Database, claim: Claim, outcomes: Sequence[PromptOutcome], **steps: Any
) -> None:
    batch = MicroBatchRecord(
        device="cpu",
        compute_mode="null",
        rows=len(outcomes),
        prompt_tokens=sum(each.prompt_tokens for each in outcomes),
        completion_tokens=sum(each.completion_tokens for each in outcomes),
        prefill_seconds=0.25,
        decode_seconds=0.5,
        out_of_memory_retries=0,
        outcomes=tuple(outcomes),
        **steps,
    )
    record_micro_batch(database, claim, batch, LEASE_SECONDS)


def work_off(database: Database, job_id: str, outcomes: Sequence[PromptOutcome]) -> None:
    """Run a job of one shard to its end."""
    claim = claim_next(database, job_id)
    record(database, claim, outcomes)
    finish_shard(database, claim)
