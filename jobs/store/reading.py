"""How far jobs are and what holds their models, as `status` and `list` show it."""

from __future__ import annotations

from typing import Any

from sqlalchemy import Select, func, select

from jobs.database import Database
from jobs.errors import AmbiguousJobError, UnknownJobError
from jobs.models import database_now, jobs, micro_batches, shards, workers
from jobs.store.reports import JobReport, ModelState, StepReport

JOBS_PER_QUERY = 500
# A refusal names five jobs; a sixth says that there are more.
IDS_OF_A_PREFIX = 6
# A worker reports every sweep; after this long it is taken for dead.
WORKER_SILENT_SECONDS = 120.0
# Of the workers, those that have neither ended nor fallen silent.
LIVE = (
    workers.c.stopped_at.is_(None),
    workers.c.last_seen_at > database_now(-WORKER_SILENT_SECONDS),
)


def find_job(database: Database, prefix: str) -> str:
    """The id of the one job that starts with the prefix.

    Raises:
        UnknownJobError: None does.
        AmbiguousJobError: Several do; the message names some.
    """
    wanted = prefix.strip().lower()
    starts_so = func.substr(jobs.c.id, 1, len(wanted)) == wanted
    by_prefix = select(jobs.c.id).where(starts_so).order_by(jobs.c.id).limit(IDS_OF_A_PREFIX)
    with database.read() as connection:
        # A whole id, as programs give it, is looked up; only a prefix is searched for.
        whole = connection.execute(select(jobs.c.id).where(jobs.c.id == wanted)).scalar()
        if whole is not None:
            return str(whole)
        ids = list(connection.execute(by_prefix).scalars())
    if not wanted or not ids:
        raise UnknownJobError(f"no job has the id {prefix!r}: `tgp-jobs list` shows the jobs")
    if len(ids) > 1:
        shown = ", ".join(ids[:5]) + (", ..." if len(ids) > 5 else "")
        raise AmbiguousJobError(f"{prefix!r} could be {shown}: give more letters of the id")
    return str(ids[0])


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
            rows = {row.id: row for row in connection.execute(_reports(*some))}
            reports += [_report(rows[each]) for each in some if each in rows]
    return reports


def _reports(*job_ids: str) -> Select[Any]:
    """Jobs with the sums over their shards: 4 000 rows for a million prompts, not a million.

    The sums of a job are asked for by name, since SQLite would sum all first.
    """
    each = shards.c
    summed = (
        each.completed_prompts,
        each.failed_prompts,
        each.prompt_tokens,
        each.completion_tokens,
        each.prefill_seconds,
        each.decode_seconds,
    )
    completed = func.count().filter(each.status == "completed")
    workers_busy = func.count(each.lease_owner.distinct()).filter(each.status == "running")
    sums = (
        select(
            each.job_id.label("sums_job_id"),
            func.count().label("shards_total"),
            completed.label("shards_completed"),
            workers_busy.label("workers_busy"),
            *(func.sum(column).label(column.name) for column in summed),
        )
        .where(each.job_id.in_(job_ids))
        .group_by(each.job_id)
        .subquery("sums")
    )
    reports = select(jobs, sums).outerjoin(sums, sums.c.sums_job_id == jobs.c.id)
    return reports.where(jobs.c.id.in_(job_ids))


def _report(row: Any) -> JobReport:
    """A row of _reports; the sums are None for a job without shards."""
    prefill_seconds, decode_seconds = row.prefill_seconds or 0.0, row.decode_seconds or 0.0
    completed, failed = row.completed_prompts or 0, row.failed_prompts or 0
    generating_seconds = prefill_seconds + decode_seconds
    tokens_per_second = eta_seconds = None
    if generating_seconds > 0:
        tokens_per_second = row.completion_tokens / generating_seconds
        done = completed + failed
        if row.status == "running" and done:
            # A worker may hold several shards.
            workers_busy = max(row.workers_busy, 1)
            eta_seconds = (row.total_prompts - done) * generating_seconds / done / workers_busy
    return JobReport(
        id=row.id,
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
        prefill_seconds=prefill_seconds,
        decode_seconds=decode_seconds,
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
    sums = (
        func.coalesce(func.sum(each.steps), 0).label("steps"),
        func.coalesce(func.sum(each.row_steps), 0).label("row_steps"),
        func.coalesce(func.sum(each.row_capacity * each.steps), 0).label("capacity_steps"),
        func.coalesce(func.sum(each.streamed_bytes), 0).label("streamed_bytes"),
        func.coalesce(func.sum(each.link_wait_seconds), 0.0).label("link_wait_seconds"),
        func.coalesce(func.sum(each.compute_seconds), 0.0).label("compute_seconds"),
    )
    with database.read() as connection:
        row = connection.execute(select(*sums).where(each.job_id == job_id)).one()
    # Postgres sums big integers to decimals.
    steps = int(row.steps)
    return StepReport(
        steps=steps,
        rows=int(row.row_steps) / steps if steps else None,
        row_capacity=int(row.capacity_steps) / steps if steps else None,
        streamed_bytes=int(row.streamed_bytes),
        link_wait_seconds=row.link_wait_seconds,
        compute_seconds=row.compute_seconds,
    )


def model_state(database: Database, model: str) -> ModelState:
    """Whether some worker holds or loads the model, and how far the load is."""
    alive = (
        select(workers)
        .where(workers.c.model == model, *LIVE)
        .order_by(workers.c.last_seen_at.desc())
    )
    with database.read() as connection:
        rows = connection.execute(alive).all()
    if not rows:
        return ModelState(state="not loaded")
    # A worker that has the model goes before one that loads it.
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


def served_models(database: Database) -> set[str]:
    """The aliases that some live worker serves."""
    with database.read() as connection:
        served = connection.execute(select(workers.c.models).where(*LIVE)).scalars()
        return {model for models in served for model in models}


def unserved_advice(database: Database, model: str) -> str | None:
    """What to do where no live worker takes messages of the model; None where one does."""
    served = served_models(database)
    if not served:
        return "no worker is running: start one with tgp-jobs worker"
    if model in served:
        return None
    return (
        f"no live worker serves {model}: restart a worker whose catalogue has it (a worker reads "
        "its catalogue when it starts), or start one with tgp-jobs worker"
    )
