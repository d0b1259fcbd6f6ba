"""`tgp-jobs repair`: mend what no sweep and no start of a worker mends."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import click

from cli.examples import examples
from cli.faults import Fault, job_faults
from cli.ledger import open_ledger
from cli.options import json_option, settings_options
from cli.output import print_json, print_table, say
from cli.worker_extra import INSTALL_COMMAND, MissingExtraError, is_installed
from jobs.database import Database
from jobs.errors import TgpError
from jobs.settings import Settings
from jobs.store.workers import live_workers

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
    "with_stores",
    is_flag=True,
    help="Also delete incomplete int8 copies, and compare the checksums of the complete ones.",
)
@settings_options()
@json_option
@click.pass_context
def repair(
    context: click.Context, *, dry_run: bool, with_stores: bool, settings: Settings, as_json: bool
) -> None:
    """Mend what no worker mends by itself.

    That is what a restored backup, a change by hand or a full disk left behind.
    Workers may go on meanwhile. A second run finds nothing to do. Exits with 1
    if something could not be mended, and with --dry-run if there is something
    to mend.
    """
    database = open_ledger(settings)
    # All of them before the first is mended: a mended one may look like another.
    faults = list(job_faults(database))
    if with_stores:
        faults += _store_faults(settings, database)
    mended = [_outcome(fault, dry_run=dry_run) for fault in faults]
    is_well = all(each.outcome in (DONE, GONE) for each in mended)
    if as_json:
        documents = [each.document() for each in mended]
        print_json({"ok": is_well, "dry_run": dry_run, "faults": documents})
    else:
        _show(mended)
    context.exit(0 if is_well else 1)


def _store_faults(settings: Settings, database: Database) -> Iterator[Fault]:
    if not is_installed("torch"):
        raise MissingExtraError(
            f"int8 copies can be looked at only where torch is installed: {INSTALL_COMMAND}"
        )
    from cli.store_faults import store_faults

    busy = {each.model for each in live_workers(database) if each.status == "loading"}
    return store_faults(settings.stores_path, {each for each in busy if each})


def _outcome(fault: Fault, *, dry_run: bool) -> Mended:
    if dry_run:
        return Mended(fault=fault, outcome=WOULD)
    try:
        return Mended(fault=fault, outcome=DONE if fault.repair() else GONE)
    except (TgpError, OSError) as error:
        return Mended(fault=fault, outcome=FAILED, reason=str(error))


def _show(mended: list[Mended]) -> None:
    if not mended:
        say("nothing is broken")
        return
    rows = (
        (each.outcome, each.fault.subject, each.fault.found, each.reason or each.fault.mend)
        for each in mended
    )
    print_table(("OUTCOME", "WHAT", "FOUND", "MEND"), rows)
