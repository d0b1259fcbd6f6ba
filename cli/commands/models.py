"""`tgp-jobs models`: what may be run, and where it is being run."""

from __future__ import annotations

from typing import Any

import click

from cli.examples import examples
from cli.ledger import open_ledger
from cli.options import json_option, settings_options
from cli.output import note, print_json, print_table
from jobs.catalogue import CatalogueModel, load_catalogue
from jobs.errors import DatabaseUnavailableError, SchemaError
from jobs.settings import Settings
from jobs.store.records import WorkerReport
from jobs.store.workers import live_workers

HEADINGS = ("ALIAS", "LOCATION", "REVISION", "WORKERS", "DESCRIPTION")


@click.command()
@examples(
    "tgp-jobs models",
    "tgp-jobs models --json",
)
@settings_options()
@json_option
def models(*, settings: Settings, as_json: bool) -> None:
    """List the models and the workers that serve them."""
    catalogue = load_catalogue(settings)
    workers = _live_workers(settings)
    # A worker elsewhere may serve what this machine's catalogue does not list.
    aliases = dict.fromkeys([*catalogue, *(alias for each in workers for alias in each.models)])
    documents = [_document(alias, catalogue.get(alias), workers) for alias in aliases]
    if as_json:
        print_json(documents)
    else:
        print_table(HEADINGS, map(_cells, documents))


def _live_workers(settings: Settings) -> list[WorkerReport]:
    try:
        return live_workers(open_ledger(settings))
    except (DatabaseUnavailableError, SchemaError) as error:
        # The catalogue is worth showing without it.
        note(f"workers are not known: {error.message}")
        return []


def _document(
    alias: str, model: CatalogueModel | None, workers: list[WorkerReport]
) -> dict[str, Any]:
    return {
        "alias": alias,
        "location": None if model is None else model.location,
        "revision": None if model is None else model.revision,
        "description": "" if model is None else model.description,
        "workers": [
            {
                "id": worker.id,
                "hostname": worker.hostname,
                "status": worker.status,
                "device": worker.device,
                "holds": worker.model == alias and worker.status != "loading",
                "loading": worker.model == alias and worker.status == "loading",
            }
            for worker in workers
            if alias in worker.models
        ],
    }


def _cells(document: dict[str, Any]) -> tuple[str, ...]:
    shown = [_worker_text(worker) for worker in document["workers"]]
    return (
        document["alias"],
        document["location"] or "known to a worker",
        document["revision"] or "",
        ", ".join(shown) or "none",
        document["description"],
    )


def _worker_text(worker: dict[str, Any]) -> str:
    doing = "loading it" if worker["loading"] else "holds it" if worker["holds"] else ""
    return f"{worker['hostname']} ({doing})" if doing else str(worker["hostname"])
