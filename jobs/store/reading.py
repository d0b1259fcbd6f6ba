"""What the commands show: jobs, their progress, their results."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from sqlalchemy import BindParameter, Select, TextClause, bindparam, select, text

from jobs.database import Database
from jobs.errors import AmbiguousJobError, UnknownJobError
from jobs.models import completions, jobs, prompts
from jobs.store import status_rows
from jobs.store.records import ResultRow
from jobs.store.reports import JobReport, ModelState, StepReport

ROWS_PER_PAGE = 1_000
JOBS_PER_QUERY = 500


def find_job(database: Database, prefix: str) -> str:
    """The id of the one job that starts with the prefix.

    Raises:
        UnknownJobError: None does.
        AmbiguousJobError: Several do; the message names some.
    """
    wanted = prefix.strip().lower()
    with database.read() as connection:
        # A whole id, as programs give it, is looked up; only a prefix is searched for.
        whole = connection.execute(select(jobs.c.id).where(jobs.c.id == wanted)).scalar()
        if whole is not None:
            return str(whole)
        ids: list[str] = list(
            connection.execute(
                text(status_rows.JOBS_BY_PREFIX), {"prefix": wanted, "length": len(wanted)}
            ).scalars()
        )
    if not wanted or not ids:
        raise UnknownJobError(f"no job has the id {prefix!r}: `tgp-jobs list` shows the jobs")
    if len(ids) > 1:
        shown = ", ".join(ids[:5]) + (", ..." if len(ids) > 5 else "")
        raise AmbiguousJobError(f"{prefix!r} could be {shown}: give more letters of the id")
    return ids[0]


def job_report(database: Database, job_id: str) -> JobReport:
    """Everything `status` shows of a job."""
    with database.read() as connection:
        row = connection.execute(_reports(job_id)).mappings().one_or_none()
    if row is None:
        raise UnknownJobError(f"no job has the id {job_id!r}: `tgp-jobs list` shows the jobs")
    return status_rows.job_report_of(row)


def job_reports(
    database: Database, *, status: str | None = None, limit: int | None = None
) -> list[JobReport]:
    """The jobs, newest first."""
    found = select(jobs.c.id).order_by(jobs.c.created_at.desc(), jobs.c.id).limit(limit)
    if status is not None:
        found = found.where(jobs.c.status == status)
    reports: list[JobReport] = []
    with database.read() as connection:
        ids = list(connection.execute(found).scalars())
        # By name, or the shards of every job there ever was would be summed.
        for first in range(0, len(ids), JOBS_PER_QUERY):
            some = ids[first : first + JOBS_PER_QUERY]
            # Not sorted by SQLite, which would read all jobs by age for it.
            rows = {row["id"]: row for row in connection.execute(_reports(*some)).mappings()}
            reports += [status_rows.job_report_of(rows[each]) for each in some if each in rows]
    return reports


def _reports(*job_ids: str) -> TextClause:
    named: BindParameter[Any] = bindparam("job_ids", job_ids, expanding=True)
    return text(status_rows.JOB_REPORTS).bindparams(named)


def step_report(database: Database, job_id: str) -> StepReport:
    """What the decode steps of a job took; reads a row per micro-batch of it."""
    with database.read() as connection:
        found = connection.execute(text(status_rows.STEP_REPORT), {"job_id": job_id})
        return status_rows.step_report_of(found.mappings().one())


def model_state(database: Database, model: str) -> ModelState:
    """Whether some worker holds or loads the model, and how far the load is."""
    statement = status_rows.MODEL_STATE[database.url.get_backend_name()]
    with database.read() as connection:
        found = connection.execute(text(statement), {"model": model})
        return status_rows.model_state_of(found.mappings().all())


def result_rows(
    database: Database, job_id: str, *, after: int = -1, failed_only: bool = False
) -> Iterator[ResultRow]:
    """The results there are, in input order, a page of rows in memory at a time.

    Args:
        database: The ledger.
        job_id: Whose results.
        after: Only prompts with a greater index.
        failed_only: Only prompts that ended with an error.
    """
    while True:
        # Of both tables: Postgres would read completions from the job's first one
        # each time, in the middle of 200 000 for 28 ms instead of 2.
        query = (
            _results(job_id)
            .where(prompts.c.prompt_index > after, completions.c.prompt_index > after)
            .limit(ROWS_PER_PAGE)
        )
        if failed_only:
            query = query.where(completions.c.error_code.is_not(None))
        with database.read() as connection:
            rows = connection.execute(query).all()
        for row in rows:
            values = dict(row._mapping)
            yield ResultRow(index=values.pop("prompt_index"), **values)
        if len(rows) < ROWS_PER_PAGE:
            return
        after = rows[-1].prompt_index


def _results(job_id: str) -> Select[Any]:
    return (
        select(
            prompts.c.prompt_index,
            prompts.c.custom_id,
            prompts.c.prompt,
            prompts.c.messages,
            completions.c.text,
            completions.c.finish_reason,
            completions.c.prompt_tokens,
            completions.c.completion_tokens,
            completions.c.queued_seconds,
            completions.c.prefill_seconds,
            completions.c.decode_seconds,
            completions.c.first_token_seconds,
            completions.c.logprobs,
            completions.c.error_code,
            completions.c.error_message,
        )
        .join(
            completions,
            (completions.c.job_id == prompts.c.job_id)
            & (completions.c.prompt_index == prompts.c.prompt_index),
        )
        .where(prompts.c.job_id == job_id)
        .order_by(prompts.c.prompt_index)
    )
