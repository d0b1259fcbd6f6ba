"""What `status` reads of the ledger: statements, and their rows made into reports.

Both run on SQLAlchemy's connections (reading.py) and straight on a driver's
(quick_status.py), so nothing here imports SQLAlchemy, and values may be as the
driver has them: on SQLite, moments and JSON are texts.

Parameters are spelt ``:name``; ``:job_ids`` is a list in parentheses.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

from jobs.schema import NOW
from jobs.store.reports import JobReport, ModelState, StepReport

# A mapping by the columns' names; the libraries' types have no more in common.
Row = Any

# A worker reports every sweep; after this long it is taken for dead.
WORKER_SILENT_SECONDS = 120.0

SCHEMA_REVISIONS = "SELECT version_num FROM alembic_version"

# As many as a refusal names, and one that says that there are more.
JOBS_BY_PREFIX = """
SELECT id FROM jobs WHERE substr(id, 1, :length) = :prefix ORDER BY id LIMIT 6
"""

# Jobs with the sums over their shards: 4 000 rows for a million prompts, not a
# million. The sums of a job are asked for by name, since SQLite would sum all first.
JOB_REPORTS = """
SELECT
    jobs.id, jobs.name, jobs.model, jobs.status, jobs.priority, jobs.parameters,
    jobs.source_name, jobs.total_prompts, jobs.error_code, jobs.error_message,
    jobs.created_at, jobs.started_at, jobs.finished_at,
    sums.shards_total, sums.shards_completed, sums.completed_prompts, sums.failed_prompts,
    sums.prompt_tokens, sums.completion_tokens, sums.prefill_seconds, sums.decode_seconds,
    sums.workers_busy
FROM jobs LEFT OUTER JOIN (
    SELECT
        job_id,
        count(*) AS shards_total,
        count(*) FILTER (WHERE status = 'completed') AS shards_completed,
        sum(completed_prompts) AS completed_prompts,
        sum(failed_prompts) AS failed_prompts,
        sum(prompt_tokens) AS prompt_tokens,
        sum(completion_tokens) AS completion_tokens,
        sum(prefill_seconds) AS prefill_seconds,
        sum(decode_seconds) AS decode_seconds,
        count(DISTINCT lease_owner) FILTER (WHERE status = 'running') AS workers_busy
    FROM shards WHERE job_id IN :job_ids GROUP BY job_id
) AS sums ON sums.job_id = jobs.id
WHERE jobs.id IN :job_ids
"""
ONE_JOB_REPORT = JOB_REPORTS.replace(":job_ids", "(:job_id)")

STEP_REPORT = """
SELECT
    coalesce(sum(steps), 0) AS steps,
    coalesce(sum(row_steps), 0) AS row_steps,
    coalesce(sum(row_capacity * steps), 0) AS room_steps,
    coalesce(sum(streamed_bytes), 0) AS streamed_bytes,
    coalesce(sum(link_wait_seconds), 0.0) AS link_wait_seconds,
    coalesce(sum(compute_seconds), 0.0) AS compute_seconds
FROM micro_batches WHERE job_id = :job_id
"""

_WORKERS_OF_MODEL = """
SELECT id, status, load_stage, load_done, load_total, load_unit, load_seconds
FROM workers
WHERE model = :model AND stopped_at IS NULL AND last_seen_at > {silent_since}
ORDER BY last_seen_at DESC
"""
# The workers that hold or load a model, by the name of the backend.
MODEL_STATE = {
    backend: _WORKERS_OF_MODEL.format(silent_since=now.format(offset=-WORKER_SILENT_SECONDS))
    for backend, now in NOW.items()
}


def job_report_of(row: Row) -> JobReport:
    """A row of JOB_REPORTS."""
    prefill_seconds, decode_seconds = row["prefill_seconds"] or 0.0, row["decode_seconds"] or 0.0
    completed, failed = row["completed_prompts"] or 0, row["failed_prompts"] or 0
    generating_seconds = prefill_seconds + decode_seconds
    tokens_per_second = eta_seconds = None
    if generating_seconds > 0:
        tokens_per_second = row["completion_tokens"] / generating_seconds
        done = completed + failed
        if row["status"] == "running" and done:
            # A worker may hold several shards.
            workers_busy = max(row["workers_busy"], 1)
            eta_seconds = (row["total_prompts"] - done) * generating_seconds / done / workers_busy
    return JobReport(
        id=row["id"],
        name=row["name"],
        model=row["model"],
        status=row["status"],
        priority=row["priority"],
        parameters=_document(row["parameters"]),
        source_name=row["source_name"],
        total=row["total_prompts"],
        completed=completed,
        failed=failed,
        shards_total=row["shards_total"] or 0,
        shards_completed=row["shards_completed"] or 0,
        prompt_tokens=row["prompt_tokens"] or 0,
        completion_tokens=row["completion_tokens"] or 0,
        prefill_seconds=prefill_seconds,
        decode_seconds=decode_seconds,
        tokens_per_second=tokens_per_second,
        eta_seconds=eta_seconds,
        error_code=row["error_code"],
        error_message=row["error_message"],
        created_at=_moment(row["created_at"]),
        started_at=_moment_if_any(row["started_at"]),
        finished_at=_moment_if_any(row["finished_at"]),
    )


def step_report_of(row: Row) -> StepReport:
    """The row of STEP_REPORT."""
    # Postgres sums big integers to decimals.
    steps = int(row["steps"])
    return StepReport(
        steps=steps,
        rows=int(row["row_steps"]) / steps if steps else None,
        row_capacity=int(row["room_steps"]) / steps if steps else None,
        streamed_bytes=int(row["streamed_bytes"]),
        link_wait_seconds=row["link_wait_seconds"],
        compute_seconds=row["compute_seconds"],
    )


def model_state_of(rows: Sequence[Row]) -> ModelState:
    """The rows of MODEL_STATE, of which one that has the model goes before one that loads it."""
    if not rows:
        return ModelState(state="not loaded")
    row = next((row for row in rows if row["status"] != "loading"), rows[0])
    return ModelState(
        state="loading" if row["status"] == "loading" else "loaded",
        worker_id=row["id"],
        stage=row["load_stage"],
        done=row["load_done"],
        total=row["load_total"],
        unit=row["load_unit"],
        load_seconds=row["load_seconds"],
    )


def _document(value: str | dict[str, Any]) -> dict[str, Any]:
    document: dict[str, Any] = json.loads(value) if isinstance(value, str) else value
    return document


def _moment_if_any(value: str | datetime | None) -> datetime | None:
    return None if value is None else _moment(value)


def _moment(value: str | datetime) -> datetime:
    """In UTC: SQLite's texts are, without saying so; Postgres has the session's zone."""
    if isinstance(value, str):
        return datetime.fromisoformat(value).replace(tzinfo=UTC)
    return value.astimezone(UTC)
