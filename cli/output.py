"""What commands print: data on stdout, notes on stderr, nothing that moves a terminal's cursor."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any

import click

from jobs.wording import json_text
from jobs.wording import printable as printable  # noqa: PLC0414 - it is part of this interface

if TYPE_CHECKING:
    from rich.console import Console

PIPED_WIDTH = 400


def print_json(document: object) -> None:
    """The command's one document."""
    # As bytes, because JSON is UTF-8 whatever the locale says.
    click.echo(json_text(document, indent=2).encode("utf-8", "backslashreplace"))


def say(text: str = "") -> None:
    """The command's answer to a person."""
    click.echo(printable(text, keep_newlines=True))


def print_value(text: str) -> None:
    """The command's answer to a person or a script: exact where no terminal would act on it."""
    click.echo(printable(text) if sys.stdout.isatty() else text)


def note(text: str) -> None:
    """A remark for the person at the terminal."""
    click.echo(printable(text, keep_newlines=True), err=True)


def iso_time(moment: datetime | None) -> str | None:
    """A moment in UTC as ISO 8601 with a Z."""
    if moment is None:
        return None
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def duration_text(seconds: float) -> str:
    """Seconds as a person says them, such as "2 h 5 min"."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    minutes, rest = divmod(whole, 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    return f"{minutes // 60} h {minutes % 60} min"


def print_fields(fields: Iterable[tuple[str, str]]) -> None:
    """Names and values, one pair a line, the values aligned."""
    shown = [(name, printable(value)) for name, value in fields]
    width = max(len(name) for name, _ in shown)
    for name, value in shown:
        click.echo(f"{name:<{width}}  {value}")


def print_table(
    headings: Sequence[str], rows: Iterable[Sequence[str]], *, numbers: Iterable[str] = ()
) -> None:
    """A table on stdout.

    Args:
        headings: One per column.
        rows: Texts, one per column.
        numbers: The headings of columns to align on the right.
    """
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, header_style="bold")
    right = set(numbers)
    for heading in headings:
        table.add_column(
            heading, justify="right" if heading in right else "left", no_wrap=heading in right
        )
    for row in rows:
        # Text, because a job's name may look like rich's markup.
        table.add_row(*(Text(printable(cell)) for cell in row))
    console().print(table)


def console(*, stderr: bool = False) -> Console:
    """Rich's console, which leaves colours out where nobody would see them."""
    from rich.console import Console

    piped = not (sys.stderr if stderr else sys.stdout).isatty()
    options: dict[str, Any] = {"width": PIPED_WIDTH} if piped else {}
    return Console(stderr=stderr, highlight=False, **options)
