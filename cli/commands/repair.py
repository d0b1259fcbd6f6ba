"""`tgp-jobs repair`: mend what a crash, a restored backup or a full disk left behind."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from typing import Any

import click

from cli.examples import examples
from cli.faults import Fault
from cli.known_faults import looks
from cli.ledger import open_ledger
from cli.options import json_option, settings_options
from cli.output import note, print_json, print_table, say
from jobs.dispatch import Dispatcher
from jobs.errors import TgpError
from jobs.settings import Settings

WOULD, DONE, GONE, FAILED = "would be mended", "mended", "mended by itself", "failed"


@dataclass(frozen=True, kw_only=True)
class Mended:
    """A fault, what became of it, and why it failed if it did."""

    fault: Fault
    outcome: str
    reason: str | None = None

    def document(self) -> dict[str, Any]:
        return {
            "kind": self.fault.kind,
            "subject": self.fault.subject,
            "found": self.fault.found,
            "mend": self.fault.mend,
            "outcome": self.outcome,
            "reason": self.reason,
        }


@click.command()
@examples(
    "tgp-jobs repair --dry-run",
    "tgp-jobs repair",
    "tgp-jobs repair --stores --json",
)
@click.option("--dry-run", is_flag=True, help="Say what would be done, and change nothing.")
@click.option(
    "--stores",
    "thorough",
    is_flag=True,
    help="Also delete every half-made int8 copy, and compare the checksums of the finished ones.",
)
@settings_options()
@json_option
@click.pass_context
def repair(
    context: click.Context, *, dry_run: bool, thorough: bool, settings: Settings, as_json: bool
) -> None:
    """Mend what a crash or a full disk left behind.

    Workers may go on meanwhile. A second run finds nothing to do. Exits with 1
    if something could not be mended or looked at, and with --dry-run if there
    is something to mend.
    """
    database = open_ledger(settings)
    unchecked: dict[str, str] = {}
    with closing(Dispatcher(settings)) as dispatcher:
        mended = [
            _outcome(fault, dry_run=dry_run)
            for name, look in looks(settings, database, dispatcher, thorough=thorough)
            for fault in _found(name, look, unchecked)
        ]
    is_well = not unchecked and all(each.outcome in (DONE, GONE) for each in mended)
    if as_json:
        faults = [each.document() for each in mended]
        print_json({"ok": is_well, "dry_run": dry_run, "faults": faults, "unchecked": unchecked})
    else:
        _show(mended, unchecked)
    context.exit(0 if is_well else 1)


def _found(
    name: str, look: Callable[[], Iterator[Fault]], unchecked: dict[str, str]
) -> Iterator[Fault]:
    try:
        # All of them before the first is mended: a mended one may look like another.
        yield from list(look())
    except (TgpError, OSError) as error:
        unchecked[name] = str(error)


def _outcome(fault: Fault, *, dry_run: bool) -> Mended:
    if dry_run:
        return Mended(fault=fault, outcome=WOULD)
    try:
        return Mended(fault=fault, outcome=DONE if fault.repair() else GONE)
    except (TgpError, OSError) as error:
        return Mended(fault=fault, outcome=FAILED, reason=str(error))


def _show(mended: list[Mended], unchecked: dict[str, str]) -> None:
    if mended:
        rows = (
            (each.outcome, each.fault.subject, each.fault.found, each.reason or each.fault.mend)
            for each in mended
        )
        print_table(("OUTCOME", "WHAT", "FOUND", "MEND"), rows)
    elif not unchecked:
        say("nothing is broken")
    for name, reason in unchecked.items():
        note(f"{name} could not be looked at: {reason}")
