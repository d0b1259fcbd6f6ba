"""`tgp-jobs plan`: what of a model will be where, and how fast it will go."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from cli.examples import examples
from cli.options import json_option, settings_options
from cli.output import print_json
from cli.sizes import size_option
from cli.worker_extra import MissingExtraError, require_engine
from jobs.catalogue import CatalogueModel, find_model, load_catalogue
from jobs.errors import BadInputError, TgpError
from jobs.settings import Settings

if TYPE_CHECKING:
    from engine.plan.demands import Workload
    from engine.plan.on_this_machine import Speeds
    from engine.plan.plan import Plan


class CannotRunModelError(TgpError):
    """The model cannot run within these budgets."""

    code = "does_not_fit"


class ShapeUnknownError(BadInputError):
    """The model's configuration is not to be had here."""

    code = "unknown_shape"


@click.command()
@examples(
    "tgp-jobs plan gpt-neox-20b",
    "tgp-jobs plan gpt-neox-20b --gpu-memory 14.5GiB --cpu-memory 10GiB --disk 100GiB",
    "tgp-jobs plan ./my-model --prompt-tokens 512 --new-tokens 64 --device cpu --json",
)
@click.argument("model")
@size_option("--disk", "Disk space for the int8 copy (what is free, less a margin)")
@click.option(
    "--prompt-tokens",
    type=click.IntRange(1),
    default=128,
    show_default=True,
    help="Prompt tokens of each row.",
)
@click.option(
    "--new-tokens",
    type=click.IntRange(1),
    default=128,
    show_default=True,
    help="New tokens of each row.",
)
@click.option(
    "--speeds",
    type=click.Choice(["auto", "measure", "t4"]),
    default="auto",
    show_default=True,
    help="Where rates are from: measured once, measured again, or a T4's constants.",
)
@settings_options("gpu_memory", "cpu_memory", "device", "stores", "shard_size", "kv_cache")
@json_option
def plan(
    *,
    model: str,
    disk: int | None,
    prompt_tokens: int,
    new_tokens: int,
    speeds: Speeds,
    settings: Settings,
    as_json: bool,
) -> None:
    """Show what of a model would be where, and how fast.

    MODEL is an alias, or a folder with a config.json. No weights are read, and
    the figures are predictions. Memory that is not named is what is free on
    this machine. --gpu-memory plans for such a card whether it is here or not.
    """
    chosen = _chosen(settings, model)
    require_engine([chosen])
    from engine.plan.demands import Workload

    rows = Workload(
        prompt_tokens=prompt_tokens, new_tokens=new_tokens, shard_rows=settings.shard_size
    )
    made = _make(settings, chosen, rows, disk_bytes=disk, speeds=speeds)
    from cli.plan_report import plan_document, print_plan

    if as_json:
        print_json(plan_document(made))
    else:
        print_plan(made)


def _chosen(settings: Settings, model: str) -> CatalogueModel:
    """A model of the catalogue, or the one in a folder."""
    folder = Path(model).expanduser()
    catalogue = load_catalogue(settings)
    if model not in catalogue and (folder / "config.json").is_file():
        return CatalogueModel(alias=folder.absolute().name, folder=folder.absolute())
    chosen = catalogue[find_model(catalogue, model)]
    if chosen.engine == "null":
        raise BadInputError(f"{chosen.alias} is no real model: there is nothing to plan")
    return chosen


def _make(
    settings: Settings,
    model: CatalogueModel,
    rows: Workload,
    *,
    disk_bytes: int | None,
    speeds: Speeds,
) -> Plan:
    try:
        from engine.interface import ModelLoadError
        from engine.plan.plan import CannotRunError
        from worker.models.model_source import source_of
        from worker.models.plan_model import plan_model

        return plan_model(settings, source_of(model), rows, disk_bytes=disk_bytes, speeds=speeds)
    except ImportError as error:
        raise MissingExtraError(f"the model's layout cannot be computed: {error}") from error
    except CannotRunError as error:
        raise CannotRunModelError(str(error)) from error
    except ModelLoadError as error:
        raise ShapeUnknownError(str(error)) from error
