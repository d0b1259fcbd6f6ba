"""Options that commands share: one flag per setting, `--json`, a job's id."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields
from functools import wraps
from typing import Any

import click

from jobs.errors import UnknownJobError
from jobs.settings import ENVIRONMENT_PREFIX, Settings, load_settings

Command = Callable[..., Any]
Decorator = Callable[[Command], Command]

# What `worker` and `run` are told about the model and its batches.
ENGINE_SETTINGS = (
    "device",
    "stores",
    "gpu_memory",
    "cpu_memory",
    "compute_mode",
    "kv_cache",
    "micro_batch_rows",
    "shards_at_once",
    "disk_readers",
)
EVERYWHERE = ("home", "database_url", "redis_url", "catalogue")


def settings_options(*names: str) -> Decorator:
    """Give a command a flag for each of these settings and those every command has.

    The command receives them resolved, as ``settings``.
    """
    chosen = (*names, *EVERYWHERE)

    def decorate(command: Command) -> Command:
        @wraps(command)
        def with_settings(*args: Any, **kwargs: Any) -> Any:
            flags = {name: kwargs.pop(name) for name in chosen}
            return command(*args, settings=load_settings(flags), **kwargs)

        decorated: Command = with_settings
        for name in reversed(chosen):
            decorated = _setting_option(name)(decorated)
        return decorated

    return decorate


def _setting_option(name: str) -> Decorator:
    setting = next(each for each in fields(Settings) if each.name == name)
    meaning = setting.metadata["meaning"]
    default = "" if setting.default is None else f" (default {setting.default})"
    # Taken as text: the setting's own parser checks flag, variable and file alike.
    return click.option(
        "--" + name.replace("_", "-"),
        name,
        metavar=setting.metadata["metavar"] or _metavar(setting.default, name),
        help=f"{meaning[0].upper()}{meaning[1:]}{default}; {ENVIRONMENT_PREFIX}{name.upper()}.",
    )


def _metavar(default: object, name: str) -> str:
    if isinstance(default, int | float):
        return "N"
    return "URL" if name.endswith("_url") else "PATH" if default is None else "TEXT"


def json_option(command: Command) -> Command:
    """`--json`, received as ``as_json``."""
    return click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")(command)


def job_argument(command: Command) -> Command:
    """A job's id or the start of one, received as ``job``."""
    return click.argument("job", metavar="ID", callback=_ascii_id)(command)


def _ascii_id(_: click.Context, __: click.Parameter, value: str) -> str:
    # Bytes that are no text would stop the database driver with a riddle.
    if not value.isascii():
        raise UnknownJobError()
    return value


def output_options(command: Command) -> Command:
    """`--format` and `-o`, received as ``file_format`` (None if not given) and ``output``."""
    from jobs.results.formats import FORMATS

    command = click.option(
        "-o",
        "--output",
        metavar="PATH",
        help="Write to this file, whole or not at all; compressed if it ends in .gz.",
    )(command)
    return click.option(
        "--format",
        "file_format",
        type=click.Choice(list(FORMATS)),
        help="How results are written (default jsonl).",
    )(command)
