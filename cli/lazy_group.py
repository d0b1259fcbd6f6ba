"""A group of commands whose modules are imported when they are called for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module
from typing import Any

import click

from cli.failures import reported

# Whether errors are to be JSON, in the context's notes.
AS_JSON = "cli.as_json"


@dataclass(frozen=True)
class LazyCommand:
    """Where a command is, and its short help, so that `--help` imports none of them.

    Attributes:
        target: ``module:attribute``, the module in cli.commands.
        short_help: The first sentence of the command's own help.
    """

    target: str
    short_help: str

    def load(self) -> click.Command:
        module, _, attribute = self.target.partition(":")
        command = getattr(import_module(f"cli.commands.{module}"), attribute)
        if not isinstance(command, click.Command):
            raise TypeError(f"{self.target} is no command")
        return command


class LazyGroup(click.Group):
    """Loads the command that is called, and reports how it failed."""

    def __init__(self, *args: Any, lazy_commands: Mapping[str, LazyCommand], **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.lazy_commands = lazy_commands

    def list_commands(self, ctx: click.Context) -> list[str]:
        # In the order of the table, which is that of a job's life.
        return list(self.lazy_commands)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        lazy = self.lazy_commands.get(cmd_name)
        return None if lazy is None else lazy.load()

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(
                [(name, lazy.short_help) for name, lazy in self.lazy_commands.items()]
            )

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        # Looked for here, because an error in the arguments themselves must be
        # reported as JSON too.
        ctx.meta[AS_JSON] = "--json" in args
        return super().parse_args(ctx, args)

    def invoke(self, ctx: click.Context) -> Any:
        with reported(as_json=ctx.meta[AS_JSON]):
            return super().invoke(ctx)
