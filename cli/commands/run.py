"""`tgp-jobs run`: a job from file to completions in this one process."""

from __future__ import annotations

import logging

import click

from cli.commands.results import results_format, write_results
from cli.examples import examples
from cli.job_options import job_options
from cli.ledger import open_ledger
from cli.options import ENGINE_SETTINGS, json_option, output_options, settings_options
from cli.output import note
from cli.watch import exit_code, progress_shown
from cli.worker_extra import require_engine
from jobs.catalogue import find_model, load_catalogue
from jobs.database import Database
from jobs.new_job import JobOrder, store_job
from jobs.settings import Settings
from jobs.store.reading import find_job, job_report
from jobs.store.reports import JobReport


@click.command()
@examples(
    "tgp-jobs run prompts.jsonl --model bloom-7b1 -o completions.jsonl",
    "tgp-jobs run questions.txt --model tiny-flan --format table",
    "tgp-jobs run --resume 7kq2",
)
@click.argument("file", required=False)
@click.option("--resume", metavar="ID", help="Go on with a job that was interrupted.")
@job_options
@output_options
@settings_options("shard_size", *ENGINE_SETTINGS, "lease_seconds", "max_crashes")
@json_option
@click.pass_context
def run(
    context: click.Context,
    file: str | None,
    *,
    resume: str | None,
    order: JobOrder,
    file_format: str | None,
    output: str | None,
    settings: Settings,
    as_json: bool,
) -> None:
    """Run a file of prompts in this process, without Redis.

    Takes what submit takes and writes what results writes. After Ctrl-C,
    --resume goes on where it stopped. --json is --format jsonl. Exits with 1
    if the job or any of its prompts failed.
    """
    chosen = results_format(file_format, as_json=as_json)
    if (file is None) == (resume is None):
        raise click.UsageError("give either a FILE of prompts or --resume ID")
    if resume is not None and not order.is_empty:
        raise click.UsageError("--resume goes on with a stored job, whose options are settled")
    database = open_ledger(settings)

    def accept_model(model: str) -> None:
        _require_model(settings, model)

    if file is not None:
        job_id = store_job(settings, database, file, order, note=note, accept_model=accept_model).id
    else:
        job_id = find_job(database, resume or "")
    report = _run(settings, database, job_id)
    write_results(database, job_id, chosen, output)
    context.exit(exit_code(report))


def _run(settings: Settings, database: Database, job_id: str) -> JobReport:
    """Run the job to its end.

    Raises:
        KeyboardInterrupt: It was stopped before; a note has said how to go on.
    """
    report = job_report(database, job_id)
    if report.ended:
        note(f"job {job_id} has already ended: {report.status}")
        return report
    _require_model(settings, report.model)
    from worker.log import configure_logging
    from worker.shards.run_local import run_job

    # The progress display says the rest.
    configure_logging(settings.log_format, logging.WARNING)
    try:
        with progress_shown(database, job_id):
            report = run_job(settings, database, job_id)
    except KeyboardInterrupt:
        _note_resume(job_id)
        raise
    if not report.ended:
        _note_resume(job_id)
        raise KeyboardInterrupt
    return report


def _require_model(settings: Settings, model: str) -> None:
    """Raise unless this machine's catalogue has the model and its engine is installed."""
    catalogue = load_catalogue(settings)
    require_engine([catalogue[find_model(catalogue, model)]])


def _note_resume(job_id: str) -> None:
    note(f"stopped; what is finished is kept. Go on with: tgp-jobs run --resume {job_id}")
