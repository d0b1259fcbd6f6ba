"""The console entry point."""

from __future__ import annotations

import atexit
import gc
import os
import sys

import click

from cli.examples import examples
from cli.failures import show_unexpected
from cli.lazy_group import LazyCommand, LazyGroup

COMMANDS = {
    "submit": LazyCommand("submit:submit", "Store a file of prompts as a job."),
    "status": LazyCommand("status:status", "Show how far a job is."),
    "list": LazyCommand("list:list_jobs", "List the jobs, newest first."),
    "results": LazyCommand("results:results", "Write a job's completions, in input order."),
    "cancel": LazyCommand("cancel:cancel", "End a job early; what is finished stays."),
    "retry": LazyCommand("retry:retry", "Run a job's failed prompts again."),
    "models": LazyCommand("models:models", "List the models and the workers that serve them."),
    "plan": LazyCommand("plan:plan", "Show what of a model would be where, and how fast."),
    "prepare": LazyCommand("prepare:prepare", "Make a model's int8 copy on disk, once."),
    "worker": LazyCommand("start_worker:worker", "Run jobs from the queue until stopped."),
    "run": LazyCommand("run:run", "Run a file of prompts in this process, without Redis."),
    "db": LazyCommand("db:db", "Look after the database's schema."),
    "doctor": LazyCommand("doctor:doctor", "Check this machine and say how to mend it."),
    "repair": LazyCommand("repair:repair", "Mend what no worker mends by itself."),
}
# These stay for hours; the others are over before garbage is worth collecting.
LONG_LIVED = {"worker", "run"}


@click.group(
    cls=LazyGroup,
    lazy_commands=COMMANDS,
    context_settings={"help_option_names": ["-h", "--help"]},
)
@examples(
    "tgp-jobs submit prompts.jsonl --model bloom-7b1",
    "tgp-jobs worker",
    "tgp-jobs results 7kq2",
)
@click.version_option(package_name="tgp-jobs", message="%(prog)s %(version)s")
def cli() -> None:
    """Run files of prompts through a model that is too big for the GPU."""


def main() -> None:
    """Run the command line and exit with the command's code."""
    _replace_closed_streams()
    if not LONG_LIVED.intersection(sys.argv[1:2]):
        # Collecting while SQLAlchemy and Celery are imported is a fifth of
        # submit's CPU (0.55 s against 0.43 s) and frees nothing; commands that
        # loop turn it on again.
        gc.disable()
        # Nor is it worth collecting once more at the end: a fifth of the CPU of
        # `status` (0.45 s against 0.36 s). Commands close what they have open.
        atexit.register(gc.freeze)
    sys.excepthook = show_unexpected
    try:
        cli(prog_name="tgp-jobs")
    except KeyboardInterrupt:  # before a command was found
        sys.exit(130)


def _replace_closed_streams() -> None:
    """Discard what goes to a standard output or standard error that is closed (`>&-`).

    The descriptor must not stay free: the next file to be opened, perhaps the
    ledger, would get it, and a library that prints would write into that file.
    """
    for descriptor, name in ((1, "stdout"), (2, "stderr")):
        if getattr(sys, name) is not None:
            continue
        opened = os.open(os.devnull, os.O_WRONLY)
        if opened != descriptor:
            os.dup2(opened, descriptor)
            os.close(opened)
        setattr(sys, name, os.fdopen(descriptor, "w", encoding="utf-8", closefd=False))
