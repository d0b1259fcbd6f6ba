"""An option for a size, such as 14.5GiB."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import click

from jobs.sizes import parse_size

Command = Callable[..., Any]


def size_option(name: str, meaning: str) -> Callable[[Command], Command]:
    """An option for a size, received in bytes or as None."""
    return click.option(name, metavar="SIZE", callback=_size, help=f"{meaning}; 14.5GiB, 10GB.")


def _size(_: click.Context, __: click.Parameter, value: str | None) -> int | None:
    if value is None:
        return None
    try:
        return parse_size(value)
    except ValueError as error:
        raise click.BadParameter(str(error)) from None
