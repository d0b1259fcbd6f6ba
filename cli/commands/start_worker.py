"""`tgp-jobs worker`: run jobs from the queue until stopped."""

from __future__ import annotations

from dataclasses import replace

import click

from cli.examples import examples
from cli.options import ENGINE_SETTINGS, settings_options
from cli.worker_extra import require_engine
from jobs.catalogue import find_model, load_catalogue
from jobs.settings import Settings


@click.command()
@examples(
    "tgp-jobs worker",
    "tgp-jobs worker --model bloom-7b1 --model flan-ul2 --device cuda",
    "tgp-jobs worker --redis-url redis://queue.example:6379/0 --log-format json",
)
@click.option(
    "--model",
    "aliases",
    metavar="ALIAS",
    multiple=True,
    help="Serve only this model; may be repeated (default: the whole catalogue).",
)
@settings_options(
    *ENGINE_SETTINGS,
    "lease_seconds",
    "sweep_seconds",
    "max_crashes",
    "sticky_seconds",
    "log_format",
)
@click.option("--json", "as_json", is_flag=True, help="Log JSON lines: --log-format json.")
@click.pass_context
def worker(
    context: click.Context, *, aliases: tuple[str, ...], settings: Settings, as_json: bool
) -> None:
    """Run jobs from the queue until stopped.

    Without a Redis URL it starts a private Redis in the state directory, which
    other commands on this machine find by themselves. Ctrl-C stops it at the
    next step and puts unfinished work back.
    """
    catalogue = load_catalogue(settings)
    served = dict.fromkeys(find_model(catalogue, alias) for alias in aliases) or catalogue
    require_engine(catalogue[alias] for alias in served)
    if as_json:
        settings = replace(settings, log_format="json")
    from worker.queue.celery_app import start_worker

    context.exit(start_worker(settings, models=tuple(served)))
