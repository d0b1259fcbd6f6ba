"""`tgp-jobs list`: the jobs, newest first."""

from __future__ import annotations

from typing import get_args

import click

from cli.examples import examples
from cli.job_document import job_document
from cli.ledger import open_ledger
from cli.options import json_option, settings_options
from cli.output import note, print_json, print_table
from jobs.settings import Settings
from jobs.store.reading import job_reports, model_state
from jobs.store.reports import JobReport, JobStatus

HEADINGS = ("ID", "NAME", "MODEL", "STATUS", "DONE", "FAILED", "TOK/S", "CREATED (UTC)")


@click.command("list")
@examples(
    "tgp-jobs list",
    "tgp-jobs list --status running --limit 10",
    "tgp-jobs list --json",
)
@click.option("--status", type=click.Choice(get_args(JobStatus)), help="Only jobs in this state.")
@click.option(
    "--limit",
    type=click.IntRange(min=1),
    default=50,
    show_default=True,
    help="The most jobs to list.",
)
@settings_options()
@json_option
def list_jobs(*, status: str | None, limit: int, settings: Settings, as_json: bool) -> None:
    """List the jobs, newest first."""
    database = open_ledger(settings)
    # One more than wanted tells whether there are more.
    reports = job_reports(database, status=status, limit=limit + 1)
    has_more = len(reports) > limit
    reports = reports[:limit]
    if as_json:
        states = {
            model: model_state(database, model)
            for model in dict.fromkeys(job.model for job in reports)
        }
        print_json([job_document(job, states[job.model]) for job in reports])
    elif reports:
        print_table(HEADINGS, map(_cells, reports), numbers=("DONE", "FAILED", "TOK/S"))
    else:
        note("no jobs")
    if has_more:
        note(f"these are the newest {limit}; --limit shows more")


def _cells(job: JobReport) -> tuple[str, ...]:
    speed = "" if job.tokens_per_second is None else f"{job.tokens_per_second:.1f}"
    return (
        job.id,
        job.name or "",
        job.model,
        job.status,
        f"{job.completed}/{job.total}",
        str(job.failed),
        speed,
        f"{job.created_at:%Y-%m-%d %H:%M}",
    )
