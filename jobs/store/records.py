"""What the store hands out: frozen values, no rows, no sessions."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any

PRIORITIES = ("high", "normal", "low")


@dataclass(frozen=True, kw_only=True)
class NewJob:
    """What `submit` was told about a job."""

    model: str
    source_name: str
    content_digest: str
    total_prompts: int
    parameters: dict[str, Any]
    name: str | None = None
    priority: str = "normal"
    shard_size: int = 256
    idempotency_key: str | None = None


@dataclass(frozen=True, kw_only=True)
class Submission:
    """The job's id, and whether this call made it or an earlier one with the same key."""

    job_id: str
    created: bool


@dataclass(frozen=True, kw_only=True)
class PublishableShard:
    shard_id: int
    model: str
    priority: str


@dataclass(frozen=True, kw_only=True)
class Claim:
    """A shard that is ours for as long as the lease is renewed.

    Attributes:
        attempt: The fence; every write carries it.
        crashes: How many owners died holding the shard since its last result.
        load_crashes: How many died while loading its model.
        runs_alone: Whether some owner died or failed with it, so that no other
            shard's prompts may share a batch with it.
        queued_seconds: From submit to this claim, by the database's clock.
    """

    shard_id: int
    job_id: str
    model: str
    first_index: int
    last_index: int
    attempt: int
    crashes: int
    load_crashes: int
    runs_alone: bool
    worker_id: str
    process: int
    job_parameters: dict[str, Any]
    queued_seconds: float


@dataclass(frozen=True, kw_only=True)
class PendingPrompt:
    """A prompt that has no result yet; exactly one of prompt and messages is set."""

    index: int
    prompt: str | None
    messages: list[dict[str, str]] | None
    parameters: dict[str, Any] | None


@dataclass(frozen=True, kw_only=True)
class PromptOutcome:
    """One prompt's result: a text with a finish reason, or an error.

    Attributes:
        queued_seconds: From submit to the start of its prefill.
        first_token_seconds: From the claim of its shard to its first token.
        logprobs: Of each new token, in the form that `results` writes.
    """

    index: int
    text: str | None
    finish_reason: str | None
    prompt_tokens: int
    completion_tokens: int
    queued_seconds: float
    prefill_seconds: float
    decode_seconds: float
    error_code: str | None = None
    error_message: str | None = None
    first_token_seconds: float | None = None
    logprobs: list[dict[str, Any]] | None = None

    @classmethod
    def not_generated(
        cls, index: int, queued_seconds: float, *, code: str, message: str
    ) -> PromptOutcome:
        """The error of a prompt that the engine never worked on."""
        return cls(
            index=index,
            text=None,
            finish_reason=None,
            prompt_tokens=0,
            completion_tokens=0,
            queued_seconds=queued_seconds,
            prefill_seconds=0.0,
            decode_seconds=0.0,
            error_code=code,
            error_message=message,
        )


@dataclass(frozen=True, kw_only=True)
class MicroBatchRecord:
    """What a shard had of one window of an engine's work; rows 0: nothing was generated."""

    device: str
    compute_mode: str
    rows: int
    prompt_tokens: int
    completion_tokens: int
    prefill_seconds: float
    decode_seconds: float
    out_of_memory_retries: int
    outcomes: tuple[PromptOutcome, ...]
    steps: int = 0
    row_steps: int = 0
    row_capacity: int = 0
    streamed_bytes: int = 0
    link_wait_seconds: float = 0.0
    compute_seconds: float = 0.0


@dataclass(frozen=True, kw_only=True)
class ResultRow(PromptOutcome):
    """One prompt with its result, in the words of a results line."""

    custom_id: str | None
    prompt: str | None
    messages: list[dict[str, str]] | None

    @property
    def tokens_per_second(self) -> float | None:
        """Completion tokens over the seconds of prefill and decode."""
        seconds = self.prefill_seconds + self.decode_seconds
        return self.completion_tokens / seconds if seconds > 0 else None


@dataclass(frozen=True, kw_only=True)
class WorkerReport:
    """A worker that was seen lately."""

    id: str
    hostname: str
    process: int
    version: str
    status: str
    models: list[str]
    model: str | None
    device: str | None
    seconds_since_seen: float
    started_at: datetime
