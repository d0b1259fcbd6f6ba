"""The commands of tgp-jobs as sections of the reference."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import fields

import click

from cli.main import COMMANDS
from cli.options import EVERYWHERE
from docs.reference.tables import code, listed, table
from jobs.prompts.parameters import PARAMETERS
from jobs.settings import Settings

# Where a command's help ends and its examples begin; cli/examples.py puts it there.
EXAMPLES = "\n\n\b\nExample:\n"
JSON_HELP = "Print one JSON document."
SETTINGS = {each.name for each in fields(Settings)}


def command_sections() -> str:
    """A section for each command: usage, help, examples, and its own options."""
    return "\n\n".join("\n\n".join(_section(path, command)) for path, command in commands().items())


def commands() -> dict[str, click.Command]:
    """Each command by what is typed after `tgp-jobs`; those of a group one by one."""
    found: dict[str, click.Command] = {}
    for name, lazy in COMMANDS.items():
        command = lazy.load()
        below = command.commands if isinstance(command, click.Group) else {}
        found |= {f"{name} {each}": below[each] for each in below} or {name: command}
    return found


def commands_that_take(setting: str) -> list[str]:
    """The commands that have a flag for a setting."""
    return [
        path
        for path, command in commands().items()
        if any(option.name == setting for option in _options(command))
    ]


def _section(path: str, command: click.Command) -> Iterator[str]:
    context = click.Context(command, info_name=f"tgp-jobs {path}")
    words, _, examples = (command.help or "").partition(EXAMPLES)
    yield f"### `tgp-jobs {path}`"
    yield f"`{' '.join(['tgp-jobs', path, *command.collect_usage_pieces(context)])}`"
    for paragraph in words.split("\n\n"):
        yield " ".join(paragraph.split())
    lines = [line.strip() for line in examples.splitlines() if line.strip()]
    yield "\n".join(["```", *lines, "```"])
    own = [option for option in _options(command) if _is_own(option)]
    if own:
        rows = ([_spelled(option, context), _meaning(option)] for option in own)
        yield table(["option", "meaning"], rows)
    yield from _shared(command)


def _shared(command: click.Command) -> Iterator[str]:
    """A sentence for options that stand in a table of their own elsewhere on the page."""
    names = [option.name or "" for option in _options(command)]
    if any(name in PARAMETERS for name in names):
        yield "A flag for each of the [generation parameters](#generation-parameters)."
    flags = [_flag(name) for name in names if name in SETTINGS and name not in EVERYWHERE]
    if flags:
        yield f"Flags of [settings](#settings): {listed(flags)}."


def _options(command: click.Command) -> list[click.Option]:
    return [each for each in command.params if isinstance(each, click.Option)]


def _is_own(option: click.Option) -> bool:
    is_shared = option.name in SETTINGS or option.name in PARAMETERS
    return not is_shared and option.help != JSON_HELP


def _spelled(option: click.Option, context: click.Context) -> str:
    flags = ", ".join(option.opts)
    if option.is_flag:
        return code(flags)
    value = "N" if isinstance(option.type, click.IntRange) else option.make_metavar(context)
    return code(f"{flags} {value}")


def _meaning(option: click.Option) -> str:
    default = f" Default: {option.default}." if option.show_default else ""
    return f"{option.help}{default}"


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")
