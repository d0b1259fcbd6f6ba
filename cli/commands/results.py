"""`tgp-jobs results`: a job's completions, in input order."""

from __future__ import annotations

import gc

import click

from cli.examples import examples
from cli.follow import follow_results
from cli.ledger import open_ledger
from cli.options import job_argument, json_option, output_options, settings_options
from cli.output import note
from cli.result_target import open_target
from cli.watch import exit_code
from jobs.database import Database
from jobs.results.formats import FORMATS
from jobs.settings import Settings
from jobs.store.reading import find_job, job_report
from jobs.store.reports import JobReport
from jobs.store.results import result_rows


@click.command()
@examples(
    "tgp-jobs results 7kq2",
    "tgp-jobs results 7kq2 --follow -o completions.jsonl",
    "tgp-jobs results 7kq2 --format csv -o completions.csv.gz",
    "tgp-jobs results 7kq2 --failed --format table",
)
@job_argument
@output_options
@click.option("--follow", is_flag=True, help="Stay and write results as they come.")
@click.option("--failed", is_flag=True, help="Only prompts that ended with an error.")
@settings_options()
@json_option
@click.pass_context
def results(
    context: click.Context,
    job: str,
    *,
    file_format: str | None,
    output: str | None,
    follow: bool,
    failed: bool,
    settings: Settings,
    as_json: bool,
) -> None:
    """Write a job's completions, in input order.

    ID is a job's id or enough of its beginning. --json is --format jsonl.
    Exits with 1 if --follow saw the job or any of its prompts fail.
    """
    chosen = results_format(file_format, as_json=as_json)
    database = open_ledger(settings)
    job_id = find_job(database, job)
    write_results(database, job_id, chosen, output, follow=follow, failed_only=failed)
    report = job_report(database, job_id)
    if follow:
        context.exit(exit_code(report))
    _note_pending(report)


def results_format(file_format: str | None, *, as_json: bool) -> str:
    """The format the user chose, by either of two options."""
    if as_json and file_format not in (None, "jsonl"):
        raise click.UsageError(f"--json is --format jsonl and contradicts --format {file_format}")
    return file_format or "jsonl"


def write_results(
    database: Database,
    job_id: str,
    file_format: str,
    output: str | None,
    *,
    follow: bool = False,
    failed_only: bool = False,
) -> None:
    """Write results as they stream from the database.

    Raises:
        BadInputError: The output cannot be written.
    """
    # As many rows as the job has prompts, each with garbage of its own.
    gc.enable()
    job = job_report(database, job_id)
    rows = (
        follow_results(database, job_id, failed_only=failed_only)
        if follow
        else result_rows(database, job_id, failed_only=failed_only)
    )
    with open_target(output, live=follow) as write:
        for text in FORMATS[file_format](job, rows):
            write(text)


def _note_pending(job: JobReport) -> None:
    if job.pending and job.ended:
        note(f"the job is {job.status}: {job.pending} of {job.total} prompts have no result")
    elif job.pending:
        note(f"{job.pending} of {job.total} prompts have no result yet; --follow waits for them")
