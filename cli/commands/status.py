"""`tgp-jobs status`: how far a job is."""

from __future__ import annotations

import click

from cli.examples import examples
from cli.job_document import job_document, job_fields, step_fields, steps_document
from cli.options import job_argument, json_option, settings_options
from cli.output import print_fields, print_json
from jobs.settings import Settings


@click.command()
@examples(
    "tgp-jobs status 7kq2",
    "tgp-jobs status 7kq2 --watch",
    "tgp-jobs status 7kq2 --json",
)
@job_argument
@click.option("--watch", is_flag=True, help="Stay and show progress until the job has ended.")
@settings_options()
@json_option
@click.pass_context
def status(
    context: click.Context, job: str, *, watch: bool, settings: Settings, as_json: bool
) -> None:
    """Show how far a job is.

    ID is a job's id or enough of its beginning. Exits with 1 if --watch saw
    the job fail, its prompts fail, or somebody cancel it.
    """
    from cli.ledger import open_ledger
    from jobs.store.reading import (
        find_job,
        job_report,
        model_state,
        step_report,
        unserved_advice,
    )

    database = open_ledger(settings)
    job_id = find_job(database, job)
    code = 0
    if watch:
        from cli.watch import exit_code, watch_job

        code = exit_code(watch_job(database, job_id))
    report = job_report(database, job_id)
    state, steps = model_state(database, report.model), step_report(database, job_id)
    # A process of `run` serves no model, but holds the one of its job.
    is_waiting = not report.ended and state.state == "not loaded"
    advice = unserved_advice(database, report.model) if is_waiting else None
    if as_json:
        document = job_document(report, state) | {"steps": steps_document(steps)}
        print_json(document | {"advice": advice})
    else:
        waits = [("Waits", advice)] if advice else []
        print_fields(job_fields(report, state) + waits + step_fields(steps))
    context.exit(code)
