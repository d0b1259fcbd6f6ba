"""`tgp-jobs prepare`: make a model's int8 copy before a worker needs it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from cli.examples import examples
from cli.load_progress import LoadProgressDisplay, size_text
from cli.options import json_option, settings_options
from cli.output import note, print_json, print_value
from cli.worker_extra import require_engine
from jobs.catalogue import CatalogueModel, find_model, load_catalogue
from jobs.errors import BadInputError, TgpError
from jobs.settings import Settings, make_home

if TYPE_CHECKING:
    from worker.models.prepare_model import PreparedModel


class ModelNotPreparedError(TgpError):
    """The model's int8 copy cannot be made."""

    code = "model_not_prepared"


class StoreDamagedError(TgpError):
    """Files of the model's int8 copy are not as they were written."""

    code = "store_damaged"


@click.command()
@examples(
    "tgp-jobs prepare bloom-7b1",
    "tgp-jobs prepare flan-ul2 --stores /mnt/big/stores --device cuda",
    "tgp-jobs prepare gpt-neox-20b --verify --json",
)
@click.argument("model")
@click.option("--verify", is_flag=True, help="Read the copy back and compare its checksums.")
@settings_options("device", "stores")
@json_option
def prepare(*, model: str, verify: bool, settings: Settings, as_json: bool) -> None:
    """Make a model's int8 copy on disk, once.

    Downloads the checkpoint if need be, and prints the copy's folder. A worker
    does the same when it first needs the model, for the device that it runs
    on. Interrupted, it goes on from the last finished block when run again.
    """
    catalogue = load_catalogue(settings)
    chosen = catalogue[find_model(catalogue, model)]
    if chosen.engine == "null":
        raise BadInputError(f"{chosen.alias} is no real model: there is nothing to prepare")
    require_engine([chosen])
    make_home(settings)
    prepared = _prepare(settings, chosen, verify=verify)
    if prepared.damaged:
        raise StoreDamagedError(
            f"in {prepared.folder} these files are damaged: "
            f"{', '.join(prepared.damaged)}; delete that folder and prepare the model again"
        )
    done = "was there" if prepared.was_there else "is ready"
    checked = ", and every file is intact" if verify else ""
    note(f"the int8 copy of {chosen.alias} {done}: {size_text(prepared.bytes)}{checked}")
    if as_json:
        print_json(_document(chosen.alias, prepared))
    else:
        print_value(str(prepared.folder))


def _prepare(settings: Settings, model: CatalogueModel, *, verify: bool) -> PreparedModel:
    from engine.interface import ModelLoadError
    from worker.models.prepare_model import prepare_model

    try:
        with LoadProgressDisplay() as display:
            return prepare_model(settings, model, verify=verify, on_progress=display.show)
    except ModelLoadError as error:
        raise ModelNotPreparedError(str(error)) from error
    except KeyboardInterrupt:
        note(f"stopped; go on with: tgp-jobs prepare {model.alias}")
        raise


def _document(alias: str, prepared: PreparedModel) -> dict[str, object]:
    return {
        "model": alias,
        "folder": str(prepared.folder),
        "bytes": prepared.bytes,
        "was_there": prepared.was_there,
        "verified": prepared.damaged is not None,
    }
