"""Sizes as people type and read them."""

from __future__ import annotations

import re
from collections.abc import Callable
from decimal import Decimal
from typing import Any

import click

Command = Callable[..., Any]

_UNITS = {
    "B": 1,
    **{f"{letter}iB": 2 ** (10 * power) for power, letter in enumerate("KMGT", start=1)},
    **{f"{letter}B": 10 ** (3 * power) for power, letter in enumerate("KMGT", start=1)},
}
_BY_LOWER_CASE = {unit.lower(): size for unit, size in _UNITS.items()}
_SIZE = re.compile(r"(\d+(?:\.\d+)?|\.\d+)\s*([a-z]+)", re.IGNORECASE | re.ASCII)


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


def parse_size(text: str) -> int:
    """Bytes, from a number with a unit: 14.5GiB, 10GB, 512MiB.

    Raises:
        ValueError: It is no such thing; the message shows how to write one.
    """
    match = _SIZE.fullmatch(text.strip())
    unit = _BY_LOWER_CASE.get(match[2].lower()) if match else None
    if match is None or unit is None:
        raise ValueError(
            f"{text!r} is no size; write a number and a unit, such as 14.5GiB, 10GB or 512MiB"
        )
    return int(Decimal(match[1]) * unit)
