"""The job, the results and the faulty file that the reference shows."""

from __future__ import annotations

from datetime import UTC, datetime

from jobs.store.records import ResultRow
from jobs.store.reports import JobReport

JOB = JobReport(
    id="7kq2m9xd",
    name=None,
    model="bloom-7b1",
    status="completed",
    priority="normal",
    parameters={},
    source_name="prompts.jsonl",
    total=2,
    completed=1,
    failed=1,
    shards_total=1,
    shards_completed=1,
    prompt_tokens=5,
    completion_tokens=11,
    prefill_seconds=0.41,
    decode_seconds=6.9,
    tokens_per_second=1.5,
    eta_seconds=None,
    error_code=None,
    error_message=None,
    created_at=datetime(2026, 1, 1, tzinfo=UTC),
    started_at=None,
    finished_at=None,
)

ROWS = (
    ResultRow(
        index=0,
        custom_id="lakes",
        prompt="Name three lakes.",
        messages=None,
        text=" Ladoga, Onega, Vänern.",
        finish_reason="stop",
        prompt_tokens=5,
        completion_tokens=11,
        queued_seconds=3.2,
        prefill_seconds=0.41,
        decode_seconds=6.9,
        first_token_seconds=0.52,
        logprobs=None,
        error_code=None,
        error_message=None,
    ),
    ResultRow(
        index=1,
        custom_id=None,
        prompt="A very long prompt",
        messages=None,
        text=None,
        finish_reason=None,
        prompt_tokens=2100,
        completion_tokens=0,
        queued_seconds=3.2,
        prefill_seconds=0.0,
        decode_seconds=0.0,
        first_token_seconds=None,
        logprobs=None,
        error_code="prompt_too_long",
        error_message="the prompt is 2100 tokens and the model's context is 2048 with the "
        "completion; shorten the prompt or choose a model with a longer context",
    ),
)

FAULTY_FILE = """\
{"prompt": "Name three rivers.", "custom_id": "a"}
{"promt": "Name three lakes."}
{"prompt": "Name three seas.", "temperature": 9}
{"prompt": "Name three hills.", "custom_id": "a"}
{"prompt": "Name three towns."
{"prompt": "Name three birds.", "num_return_sequences": 2}
"""
