"""What the commands show: jobs, their progress, their results."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from sqlalchemy import Select, func, select

from jobs.database import Database
from jobs.errors import AmbiguousJobError, UnknownJobError
from jobs.models import completions, database_now, jobs, micro_batches, prompts, shards, workers
from jobs.store.records import JobReport, ModelState, ResultRow, StepReport

ROWS_PER_PAGE = 1_000
JOBS_PER_QUERY = 500
# A worker reports every sweep; after this long it is taken for dead.
WORKER_SILENT_SECONDS = 120.0


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
                select(jobs.c.id)
                .where(func.substr(jobs.c.id, 1, len(wanted)) == wanted)
                .order_by(jobs.c.id)
                .limit(6)
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
        row = connection.execute(_reports(job_id)).one_or_none()
    if row is None:
        raise UnknownJobError(f"no job has the id {job_id!r}: `tgp-jobs list` shows the jobs")
    return _report(row)


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
            found_rows = {row.id: row for row in connection.execute(_reports(*some))}
            reports += [_report(found_rows[job_id]) for job_id in some if job_id in found_rows]
    return reports


def _reports(*job_ids: str) -> Select[Any]:
    """Jobs with the sums over their shards: 4 000 rows for a million prompts, not a million.

    The sums of one job are asked for by name, since SQLite would sum all first.
    """
    sums = (
        select(
            shards.c.job_id,
            func.count().label("shards_total"),
            func.count(shards.c.id)
            .filter(shards.c.status == "completed")
            .label("shards_completed"),
            *[
                func.sum(column).label(column.name)
                for column in (
                    shards.c.completed_prompts,
                    shards.c.failed_prompts,
                    shards.c.prompt_tokens,
                    shards.c.completion_tokens,
                    shards.c.prefill_seconds,
                    shards.c.decode_seconds,
                )
            ],
            func.count(shards.c.lease_owner.distinct())
            .filter(shards.c.status == "running")
            .label("workers_busy"),
        )
        .where(shards.c.job_id.in_(job_ids))
        .group_by(shards.c.job_id)
        .subquery()
    )
    reports = select(jobs, sums).outerjoin(sums, sums.c.job_id == jobs.c.id)
    return reports.where(jobs.c.id.in_(job_ids))


def _report(row: Any) -> JobReport:
    values = row._mapping
    generating_seconds = (row.prefill_seconds or 0.0) + (row.decode_seconds or 0.0)
    completed, failed = row.completed_prompts or 0, row.failed_prompts or 0
    tokens_per_second = eta_seconds = None
    if generating_seconds > 0:
        tokens_per_second = row.completion_tokens / generating_seconds
        done = completed + failed
        if row.status == "running" and done:
            # A worker may hold several shards.
            workers_busy = max(row.workers_busy, 1)
            eta_seconds = (row.total_prompts - done) * generating_seconds / done / workers_busy
    return JobReport(
        id=values[jobs.c.id],
        name=row.name,
        model=row.model,
        status=row.status,
        priority=row.priority,
        parameters=row.parameters,
        source_name=row.source_name,
        total=row.total_prompts,
        completed=completed,
        failed=failed,
        shards_total=row.shards_total or 0,
        shards_completed=row.shards_completed or 0,
        prompt_tokens=row.prompt_tokens or 0,
        completion_tokens=row.completion_tokens or 0,
        prefill_seconds=row.prefill_seconds or 0.0,
        decode_seconds=row.decode_seconds or 0.0,
        tokens_per_second=tokens_per_second,
        eta_seconds=eta_seconds,
        error_code=row.error_code,
        error_message=row.error_message,
        created_at=row.created_at,
        started_at=row.started_at,
        finished_at=row.finished_at,
    )


def step_report(database: Database, job_id: str) -> StepReport:
    """What the decode steps of a job took; reads a row per micro-batch of it."""
    each = micro_batches.c
    with database.read() as connection:
        row = connection.execute(
            select(
                func.coalesce(func.sum(each.steps), 0).label("steps"),
                func.coalesce(func.sum(each.row_steps), 0).label("row_steps"),
                func.coalesce(func.sum(each.row_capacity * each.steps), 0).label("room_steps"),
                func.coalesce(func.sum(each.streamed_bytes), 0).label("streamed_bytes"),
                func.coalesce(func.sum(each.link_wait_seconds), 0.0).label("link_wait_seconds"),
                func.coalesce(func.sum(each.compute_seconds), 0.0).label("compute_seconds"),
            ).where(each.job_id == job_id)
        ).one()
    steps = int(row.steps)
    return StepReport(
        steps=steps,
        rows=int(row.row_steps) / steps if steps else None,
        row_capacity=int(row.room_steps) / steps if steps else None,
        streamed_bytes=int(row.streamed_bytes),
        link_wait_seconds=row.link_wait_seconds,
        compute_seconds=row.compute_seconds,
    )


def model_state(database: Database, model: str) -> ModelState:
    """Whether some worker holds or loads the model, and how far the load is."""
    with database.read() as connection:
        rows = connection.execute(
            select(workers)
            .where(
                workers.c.model == model,
                workers.c.stopped_at.is_(None),
                workers.c.last_seen_at > database_now(-WORKER_SILENT_SECONDS),
            )
            .order_by(workers.c.last_seen_at.desc())
        ).all()
    if not rows:
        return ModelState(state="not loaded")
    row = next((row for row in rows if row.status != "loading"), rows[0])
    return ModelState(
        state="loading" if row.status == "loading" else "loaded",
        worker_id=row.id,
        stage=row.load_stage,
        done=row.load_done,
        total=row.load_total,
        unit=row.load_unit,
        load_seconds=row.load_seconds,
    )


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
        query = _results(job_id).where(prompts.c.prompt_index > after).limit(ROWS_PER_PAGE)
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
