"""From a prompt file to a stored job; the same for `submit` and `run`."""

from __future__ import annotations

import sys
import unicodedata
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from jobs.catalogue import Catalogue, find_model, load_catalogue
from jobs.database import Database
from jobs.errors import BadInputError, UnknownModelError
from jobs.prompts.file import PromptFile, PromptFileSummary
from jobs.prompts.source import STANDARD_INPUT
from jobs.settings import Settings
from jobs.store.reading import job_report, served_models
from jobs.store.records import NewJob
from jobs.store.submission import submit_job

# The width of the database's columns.
LONGEST_LABEL_CHARACTERS = 200


CONTROL_CATEGORIES = {"Cc", "Cs", "Zl", "Zp"}


@dataclass(frozen=True, kw_only=True)
class JobOrder:
    """What a person asked for on the command line; None where they did not say."""

    model: str | None
    name: str | None
    priority: str | None
    idempotency_key: str | None
    input_format: str | None
    parameters: dict[str, Any]

    @property
    def is_empty(self) -> bool:
        return not self.parameters and all(
            each is None
            for each in (
                self.model,
                self.name,
                self.priority,
                self.idempotency_key,
                self.input_format,
            )
        )


@dataclass(frozen=True, kw_only=True)
class StoredJob:
    """A job in the ledger; created is False when an earlier one had the same key.

    Attributes:
        ended: Whether that earlier job has ended, so that nothing is left to run.
    """

    id: str
    model: str
    prompts: int
    shards: int
    created: bool
    ended: bool = False


def store_job(
    settings: Settings,
    database: Database,
    source: str,
    order: JobOrder,
    *,
    note: Callable[[str], None],
    accept_model: Callable[[str], None] | None = None,
) -> StoredJob:
    """Validate the whole file and store it as a job, or store nothing.

    Args:
        settings: Its shard size is the job's.
        database: The ledger.
        source: The file's path, or "-".
        order: The rest of the command line.
        note: Told remarks for the person who submits.
        accept_model: Called with the model's alias before anything is stored;
            what it raises refuses the job.

    Raises:
        BadInputError: The file, the model or an option is refused.
    """
    _check_label("--name", order.name)
    _check_label("--idempotency-key", order.idempotency_key)
    catalogue = load_catalogue(settings)

    def known(alias: str) -> str:
        model = _known_model(catalogue, database, alias)
        if accept_model is not None:
            accept_model(model)
        return model

    # Before the file, which may take a while, so that a typo is told at once.
    model = None if order.model is None else known(order.model)
    if source == STANDARD_INPUT and sys.stdin is not None and sys.stdin.isatty():
        note("reading prompts from the terminal; Ctrl-D ends them")
    with PromptFile(
        source, file_format=order.input_format, job_parameters=order.parameters
    ) as file:
        summary = file.validate()
        if model is None:
            model = known(_model_of_lines(file.name, summary.models))
        else:
            _note_other_models(catalogue, model, summary.models, note)
        job = _new_job(settings, order, model, file.name, summary)
        submission = submit_job(database, job, file.requests())
    if not submission.created:
        note(
            f"job {submission.job_id} was stored with this idempotency key before; "
            "nothing was added"
        )
        return _earlier_job(database, submission.job_id)
    return StoredJob(
        id=submission.job_id,
        model=model,
        prompts=job.total_prompts,
        shards=-(-job.total_prompts // job.shard_size),
        created=True,
    )


def _new_job(
    settings: Settings, order: JobOrder, model: str, name: str, summary: PromptFileSummary
) -> NewJob:
    return NewJob(
        model=model,
        source_name=name,
        content_digest=summary.digest,
        total_prompts=summary.prompt_count,
        parameters=order.parameters,
        name=order.name,
        priority=order.priority or "normal",
        shard_size=settings.shard_size,
        idempotency_key=order.idempotency_key,
    )


def _earlier_job(database: Database, job_id: str) -> StoredJob:
    report = job_report(database, job_id)
    return StoredJob(
        id=job_id,
        model=report.model,
        prompts=report.total,
        shards=report.shards_total,
        created=False,
        ended=report.ended,
    )


def _known_model(catalogue: Catalogue, database: Database, alias: str) -> str:
    try:
        return find_model(catalogue, alias)
    except UnknownModelError:
        return find_model(catalogue, alias, also=served_models(database))


def _model_of_lines(name: str, models: tuple[str, ...]) -> str:
    if not models:
        raise BadInputError(f"{name} names no model: add --model (`tgp-jobs models` lists them)")
    if len(models) > 1:
        shown = ", ".join(models)
        raise BadInputError(
            f"{name} names several models ({shown}): choose one with --model, "
            "or submit a file for each"
        )
    return models[0]


def _note_other_models(
    catalogue: Catalogue, model: str, models: tuple[str, ...], note: Callable[[str], None]
) -> None:
    known = catalogue.get(model)
    same = {model} if known is None else {model, known.hub_id}
    others = [each for each in models if each not in same]
    if others:
        note(f"--model wins: all prompts go to {model}, although lines name {', '.join(others)}")


def _check_label(flag: str, label: str | None) -> None:
    if label is None:
        return
    if not 1 <= len(label) <= LONGEST_LABEL_CHARACTERS:
        raise BadInputError(
            f"{flag}: {len(label)} characters; expected 1 to {LONGEST_LABEL_CHARACTERS}"
        )
    if any(unicodedata.category(each) in CONTROL_CATEGORIES for each in label):
        raise BadInputError(f"{flag}: {label!r} holds control characters; expected plain text")
