"""How far a job is, as `status` and `list` show it.

Apart from the other records, because making those classes would cost `status`
more time than reading the ledger does.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal

JobStatus = Literal["queued", "running", "completed", "failed", "cancelled"]
ENDED: tuple[JobStatus, ...] = ("completed", "failed", "cancelled")


@dataclass(frozen=True, kw_only=True)
class ModelState:
    """The load state of a job's model on the worker nearest to having it."""

    state: Literal["not loaded", "loading", "loaded"]
    worker_id: str | None = None
    stage: str | None = None
    done: float | None = None
    total: float | None = None
    unit: str | None = None
    load_seconds: float | None = None


@dataclass(frozen=True, kw_only=True)
class StepReport:
    """What a job's decode steps took, over all its micro-batches.

    Attributes:
        steps: How many there were.
        rows: Alive in a step, on average; None before the first step.
        row_capacity: That memory had room for, on average.
        streamed_bytes: Of weights, over the link or off the disk.
        link_wait_seconds: Spent waiting for them.
        compute_seconds: The rest of the time in the model.
    """

    steps: int
    rows: float | None
    row_capacity: float | None
    streamed_bytes: int
    link_wait_seconds: float
    compute_seconds: float

    @property
    def link_wait_share(self) -> float | None:
        """Of the time in the model, from 0 to 1; None if there was none."""
        seconds = self.link_wait_seconds + self.compute_seconds
        return self.link_wait_seconds / seconds if seconds > 0 else None


@dataclass(frozen=True, kw_only=True)
class JobReport:
    """Everything `status` and `list` show of a job.

    tokens_per_second is a worker's speed: completion tokens over the prefill
    and decode seconds they took. Loading a model and waiting are not in it, so
    an overnight pause changes nothing; None before the first micro-batch.
    eta_seconds goes by it and by the number of workers at it now.
    """

    id: str
    name: str | None
    model: str
    status: JobStatus
    priority: str
    parameters: dict[str, Any]
    source_name: str
    total: int
    completed: int
    failed: int
    shards_total: int
    shards_completed: int
    prompt_tokens: int
    completion_tokens: int
    prefill_seconds: float
    decode_seconds: float
    tokens_per_second: float | None
    eta_seconds: float | None
    error_code: str | None
    error_message: str | None
    created_at: datetime
    started_at: datetime | None
    finished_at: datetime | None

    @property
    def pending(self) -> int:
        """Prompts without a result; a cancelled or failed job keeps its own."""
        return self.total - self.completed - self.failed

    @property
    def ended(self) -> bool:
        return self.status in ENDED
