"""A job as `status` and `list` show it: a JSON object, or lines for people."""

from __future__ import annotations

from typing import Any

from cli.output import duration_text, iso_time
from jobs.store.reports import JobReport, ModelState, StepReport

SEPARATOR = ", "


def job_document(job: JobReport, state: ModelState) -> dict[str, Any]:
    """The job in the words of `status --json`; times are ISO 8601 in UTC."""
    error = None
    if job.error_code is not None:
        error = {"code": job.error_code, "message": job.error_message}
    return {
        "id": job.id,
        "name": job.name,
        "model": job.model,
        "status": job.status,
        "priority": job.priority,
        "counts": {
            "total": job.total,
            "completed": job.completed,
            "failed": job.failed,
            "pending": job.pending,
        },
        "tokens": {"prompt": job.prompt_tokens, "completion": job.completion_tokens},
        "tokens_per_second": _rounded(job.tokens_per_second),
        "eta_seconds": _rounded(job.eta_seconds),
        "seconds": {
            "prefill": _rounded(job.prefill_seconds),
            "decode": _rounded(job.decode_seconds),
        },
        "shards": {"total": job.shards_total, "completed": job.shards_completed},
        "model_state": _state_document(state),
        "parameters": job.parameters,
        "source": job.source_name,
        "error": error,
        "created_at": iso_time(job.created_at),
        "started_at": iso_time(job.started_at),
        "finished_at": iso_time(job.finished_at),
    }


def steps_document(steps: StepReport) -> dict[str, Any]:
    """What the job's decode steps took, in the words of `status --json`."""

    def per_step(seconds: float) -> float | None:
        return _rounded(seconds / steps.steps) if steps.steps else None

    return {
        "count": steps.steps,
        "mean_rows": _rounded(steps.rows),
        "mean_row_capacity": _rounded(steps.row_capacity),
        "streamed_bytes": steps.streamed_bytes,
        "link_wait_seconds": _rounded(steps.link_wait_seconds),
        "compute_seconds": _rounded(steps.compute_seconds),
        "link_wait_seconds_per_step": per_step(steps.link_wait_seconds),
        "compute_seconds_per_step": per_step(steps.compute_seconds),
    }


def _state_document(state: ModelState) -> dict[str, Any]:
    return {
        "state": state.state,
        "worker": state.worker_id,
        "stage": state.stage,
        "done": state.done,
        "total": state.total,
        "unit": state.unit,
        "load_seconds": _rounded(state.load_seconds),
    }


def _rounded(number: float | None) -> float | None:
    # Sums of floats end in digits that nobody measured.
    return None if number is None else round(number, 6)


def job_fields(job: JobReport, state: ModelState) -> list[tuple[str, str]]:
    """The job as names and values for people."""
    fields = [
        ("Job", f"{job.id} ({job.name})" if job.name else job.id),
        ("Status", job.status if job.error_code is None else f"{job.status}: {job.error_code}"),
    ]
    if job.error_message:
        fields.append(("Reason", job.error_message))
    fields += [
        ("Model", f"{job.model}, {state_text(state)}"),
        ("Prompts", _counts_text(job)),
        ("Tokens", f"{job.prompt_tokens} prompt, {job.completion_tokens} completion"),
        ("Speed", speed_text(job) or "not known yet"),
        ("Shards", f"{job.shards_completed} of {job.shards_total} completed"),
        ("Priority", job.priority),
        ("Parameters", _parameters_text(job)),
        ("Source", job.source_name),
        ("Created", iso_time(job.created_at) or ""),
    ]
    if job.started_at is not None:
        fields.append(("Started", iso_time(job.started_at) or ""))
    if job.finished_at is not None:
        fields.append(("Finished", iso_time(job.finished_at) or ""))
    return fields


def step_fields(steps: StepReport) -> list[tuple[str, str]]:
    """The job's decode steps, and what its speed is limited by; none before the first."""
    if not steps.steps:
        return []
    text = f"{steps.steps}, {steps.rows:.1f} of {steps.row_capacity:.1f} rows alive on average"
    if steps.streamed_bytes:
        text += f", {steps.streamed_bytes / 2**30:.2f} GiB of weights streamed"
    fields = [("Steps", text)]
    if limit := _limit_text(steps):
        fields.append(("Limited by", limit))
    return fields


def _limit_text(steps: StepReport) -> str:
    share = steps.link_wait_share
    if share is None:
        return ""
    if share >= 0.5:
        return f"waiting for weights {share:.0%} of the time".replace("%", " %")
    return f"computing {1 - share:.0%} of the time".replace("%", " %")


def state_text(state: ModelState) -> str:
    """Where a model's load stands, such as "loading: quantise 12 of 30 blocks"."""
    if state.state == "loading" and state.stage is not None:
        progress = ""
        if state.total:
            progress = f" {state.done or 0:g} of {state.total:g} {state.unit or ''}".rstrip()
        return f"loading: {state.stage}{progress}"
    if state.state == "loaded" and state.load_seconds is not None:
        return f"loaded in {duration_text(state.load_seconds)}"
    return state.state


def speed_text(job: JobReport) -> str:
    """Tokens per second and the time left, as far as they are known."""
    parts = []
    if job.tokens_per_second is not None:
        parts.append(f"{job.tokens_per_second:.1f} tok/s")
    if job.eta_seconds is not None and not job.ended:
        parts.append(f"about {duration_text(job.eta_seconds)} left")
    return SEPARATOR.join(parts)


def _counts_text(job: JobReport) -> str:
    return f"{job.completed} of {job.total} completed, {job.failed} failed, {job.pending} " + (
        "without a result" if job.ended else "pending"
    )


def _parameters_text(job: JobReport) -> str:
    given = [f"{name}={value!r}" for name, value in job.parameters.items()]
    return SEPARATOR.join(given) or "defaults"
