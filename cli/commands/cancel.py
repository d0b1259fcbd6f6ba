"""`tgp-jobs cancel`: end a job early."""

from __future__ import annotations

import click

from cli.examples import examples
from cli.ledger import open_ledger
from cli.options import job_argument, json_option, settings_options
from cli.output import print_json
from jobs.errors import BadInputError
from jobs.settings import Settings
from jobs.store.control import cancel_job
from jobs.store.reading import find_job, job_report


@click.command()
@examples(
    "tgp-jobs cancel 7kq2",
)
@job_argument
@settings_options()
@json_option
def cancel(job: str, *, settings: Settings, as_json: bool) -> None:
    """End a job early; what is finished stays.

    ID is a job's id or enough of its beginning. Cancelling twice is no error.
    """
    database = open_ledger(settings)
    job_id = find_job(database, job)
    cancelled = cancel_job(database, job_id)
    report = job_report(database, job_id)
    if report.status != "cancelled":
        raise BadInputError(f"job {job_id} has already {report.status}; nothing was cancelled")
    if as_json:
        print_json({"id": job_id, "status": report.status, "cancelled": cancelled})
        return
    done = report.completed + report.failed
    was = "is" if cancelled else "was already"
    click.echo(f"job {job_id} {was} cancelled; {done} of {report.total} prompts have results")
