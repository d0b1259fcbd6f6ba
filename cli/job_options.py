"""What `submit` and `run` are told about a new job."""

from __future__ import annotations

from functools import wraps
from typing import Any

import click

from cli.options import Command
from jobs.new_job import JobOrder
from jobs.prompts.formats import READERS
from jobs.prompts.parameter import Parameter
from jobs.prompts.parameters import PARAMETERS, ParameterError
from jobs.store.records import PRIORITIES

METAVARS = {"integer": "N", "number": "X", "strings": "TEXT", "token_ids": "IDS"}
ORDER_FIELDS = ("model", "name", "priority", "idempotency_key", "input_format")


def job_options(command: Command) -> Command:
    """The options that describe a job, received as ``order``, without the file."""

    @wraps(command)
    def with_order(*args: Any, **kwargs: Any) -> Any:
        texts = {name: kwargs.pop(name) for name in PARAMETERS}
        order = JobOrder(
            **{name: kwargs.pop(name) for name in ORDER_FIELDS},
            parameters=_parsed(texts),
        )
        return command(*args, order=order, **kwargs)

    decorated: Command = with_order
    for parameter in reversed(list(PARAMETERS.values())):
        decorated = _parameter_option(parameter)(decorated)
    for option in reversed(_order_options()):
        decorated = option(decorated)
    return decorated


def _order_options() -> list[Any]:
    return [
        click.option("--model", metavar="ALIAS", help="The model; `tgp-jobs models` lists them."),
        click.option("--name", metavar="TEXT", help="A name for people, up to 200 characters."),
        click.option(
            "--priority",
            type=click.Choice(PRIORITIES),
            help="Before or after other jobs (default normal).",
        ),
        click.option(
            "--idempotency-key",
            metavar="TEXT",
            help="Store the job once, however often it is submitted with this key.",
        ),
        click.option(
            "--input-format",
            type=click.Choice(list(READERS)),
            help="The file's format; its extension says it otherwise.",
        ),
    ]


def _parameter_option(parameter: Parameter) -> Any:
    if parameter.kind == "boolean":
        # None where it is not given, so that a line's own value is told from it.
        return click.option(
            _flag(parameter.name),
            parameter.name,
            is_flag=True,
            default=None,
            help=f"{parameter.help[0].upper()}{parameter.help[1:]}.",
        )
    limits = "may be repeated" if parameter.kind == "strings" else parameter.range_text
    default = "" if parameter.default is None else f", default {parameter.default:g}"
    return click.option(
        _flag(parameter.name),
        parameter.name,
        metavar=METAVARS[parameter.kind],
        multiple=parameter.kind == "strings",
        help=f"{parameter.help[0].upper()}{parameter.help[1:]} ({limits}{default}).",
    )


def _parsed(texts: dict[str, Any]) -> dict[str, Any]:
    """The parameters that were given, with every problem reported under its flag's name."""
    values: dict[str, Any] = {}
    problems: list[str] = []
    for name, given in texts.items():
        if given is None or given == ():
            continue
        parameter = PARAMETERS[name]
        try:
            values[name] = (
                parameter.parse(list(given))
                if parameter.kind == "strings"
                else given
                if parameter.kind == "boolean"
                else parameter.parse_text(given)
            )
        except ValueError as error:
            problems.append(f"{_flag(name)}: {error}")
    if problems:
        raise ParameterError(problems)
    return values


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")
