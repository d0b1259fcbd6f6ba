"""`tgp-jobs submit`: store a file of prompts and tell the workers."""

from __future__ import annotations

import click

from cli.examples import examples
from cli.job_options import job_options
from cli.ledger import open_ledger
from cli.options import json_option, settings_options
from cli.output import note, print_json
from cli.publish import publish_job
from jobs.new_job import JobOrder, store_job
from jobs.settings import Settings
from jobs.store.reading import unserved_advice


@click.command()
@examples(
    "tgp-jobs submit prompts.jsonl --model bloom-7b1",
    "tgp-jobs submit questions.txt --model flan-ul2 --max-new-tokens 64 --watch",
    "tgp-jobs submit batch.jsonl --name nightly --priority low --idempotency-key 2024-05-01",
)
@click.argument("file")
@click.option("--watch", is_flag=True, help="Stay and show progress until the job has ended.")
@job_options
@settings_options("shard_size")
@json_option
@click.pass_context
def submit(
    context: click.Context,
    file: str,
    *,
    watch: bool,
    order: JobOrder,
    settings: Settings,
    as_json: bool,
) -> None:
    """Store a file of prompts as a job.

    Prints the job's id. FILE is JSON Lines, OpenAI batch lines, CSV or text,
    gzipped or not; "-" is standard input. It is checked as a whole first: with
    any error nothing is stored. Exits with 1 if --watch saw prompts fail.
    """
    database = open_ledger(settings)
    job = store_job(settings, database, file, order, note=note)
    published = True if job.ended else publish_job(settings, database, job.id)
    if published and not job.ended and (advice := unserved_advice(database, job.model)):
        note(advice)
    if as_json:
        print_json(
            {
                "id": job.id,
                "model": job.model,
                "prompts": job.prompts,
                "shards": job.shards,
                "created": job.created,
                "published": published,
            }
        )
    else:
        click.echo(job.id)
    if not watch:
        return
    from cli.watch import exit_code, watch_job

    report = watch_job(database, job.id)
    note(f"job {job.id} {report.status}: tgp-jobs results {job.id}")
    context.exit(exit_code(report))
