"""`tgp-jobs doctor`: what works on this machine, and how to mend what does not."""

from __future__ import annotations

from dataclasses import asdict

import click

from cli.check import Check
from cli.doctor_checks import run_checks
from cli.examples import examples
from cli.options import json_option, settings_options
from cli.output import note, print_json, print_table, say
from jobs.settings import Settings

MARKS = {"ok": "ok", "warn": "warn", "fail": "FAIL"}


@click.command()
@examples(
    "tgp-jobs doctor",
    "tgp-jobs doctor --json",
)
@settings_options()
@json_option
@click.pass_context
def doctor(context: click.Context, *, settings: Settings, as_json: bool) -> None:
    """Check this machine and say how to mend it.

    Nothing is changed. Exits with 1 if a check failed; a warning is about what
    this machine may not need.
    """
    checks = list(run_checks(settings))
    failed = [check for check in checks if check.status == "fail"]
    if as_json:
        print_json({"ok": not failed, "checks": [asdict(check) for check in checks]})
    else:
        print_table(("", "CHECK", "FOUND"), map(_cells, checks))
        for check in checks:
            if check.mend:
                say(f"\nTo mend {check.name}: {check.mend}")
        if failed:
            note(f"\n{len(failed)} of {len(checks)} checks failed")
    context.exit(1 if failed else 0)


def _cells(check: Check) -> tuple[str, ...]:
    return (MARKS[check.status], check.name, check.detail)
