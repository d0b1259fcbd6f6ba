"""Command lines to copy, at the end of a command's help."""

from __future__ import annotations

from collections.abc import Callable
from inspect import cleandoc
from typing import Any


def examples(*lines: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Add these command lines to a function's help.

    Stands below ``@click.command()``, which reads the help.
    """

    def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
        help = cleandoc(function.__doc__ or "")
        shown = "".join(f"  {line}\n" for line in lines)
        # The backspace tells click to leave the lines as they are.
        function.__doc__ = f"{help}\n\n\b\nExample:\n{shown}"
        return function

    return decorate
