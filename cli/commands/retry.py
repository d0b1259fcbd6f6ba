"""`tgp-jobs retry`: run a job's failed prompts again."""

from __future__ import annotations

import click

from cli.examples import examples
from cli.ledger import open_ledger
from cli.options import job_argument, json_option, settings_options
from cli.output import print_json
from cli.publish import publish_job
from jobs.errors import BadInputError
from jobs.settings import Settings
from jobs.store.control import retry_job
from jobs.store.reading import find_job, job_report


@click.command()
@examples(
    "tgp-jobs retry 7kq2",
)
@job_argument
@settings_options()
@json_option
def retry(job: str, *, settings: Settings, as_json: bool) -> None:
    """Run a job's failed prompts again.

    Those that a failed job never reached run as well; completions stay as
    they are. ID is a job's id or enough of its beginning.
    """
    database = open_ledger(settings)
    job_id = find_job(database, job)
    status = job_report(database, job_id).status
    if status == "cancelled":
        raise BadInputError(f"job {job_id} was cancelled: submit its prompts again instead")
    if status in ("queued", "running"):
        raise BadInputError(f"job {job_id} is still {status}: retry it when it has ended")
    count = retry_job(database, job_id)
    published = bool(count) and publish_job(settings, database, job_id)
    if as_json:
        print_json({"id": job_id, "queued_again": count, "published": published})
    elif count:
        click.echo(f"job {job_id}: {count} {'prompt' if count == 1 else 'prompts'} queued again")
    else:
        click.echo(f"job {job_id} has no failed prompts; nothing was queued")
