"""The table in docs/reliability.md, made of the journal of the suite."""

from __future__ import annotations

import fcntl
import os
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from statistics import median

from tests.chaos.journal import Entry, Journal
from tests.chaos.stage import LEASE_SECONDS, MICRO_BATCH_ROWS, SWEEP_SECONDS, DatabaseKind

SHOWN_KINDS: dict[DatabaseKind, str] = {"sqlite": "SQLite", "postgres": "Postgres"}
BEGIN, END = "<!-- the table: made by tests/chaos -->", "<!-- the table ends -->"
HEAD = (
    "| fault | database | runs | broke a promise | lost | duplicated "
    "| repeated prompts (median, max) | recovery seconds (median, max) |"
    "\n|---|---|---|---|---|---|---|---|"
)


def update_report(path: Path, journal: Journal, *, seed: int, order: Sequence[str]) -> None:
    """Make the table anew.

    Args:
        path: The Markdown file, which holds the two marks.
        journal: What was played.
        seed: Of which runs it is to tell.
        order: The faults in the table's order; others are left out.
    """
    with _alone(path.parent):
        before, _, rest = path.read_text(encoding="utf-8").partition(BEGIN)
        _, _, after = rest.partition(END)
        entries = [each for each in journal.entries(seed=seed) if each.fault in order]
        lines = [BEGIN, "", summary(entries, seed=seed), "", HEAD, *rows(entries, order), "", END]
        # In one step, so that whoever reads or ends this process finds a whole file.
        new = path.with_suffix(".new")
        new.write_text(before + "\n".join(lines) + after, encoding="utf-8")
        new.replace(path)


def summary(entries: Sequence[Entry], *, seed: int) -> str:
    """What was played altogether, how and of which code."""
    runs: Counter[str] = Counter()
    for each in entries:
        runs[each.commit] += each.runs
    commits = ", ".join(f"{commit} ({count})" for commit, count in sorted(runs.items()))
    return (
        f"{runs.total()} runs, of which {sum(each.broke for each in entries)} broke a promise and "
        f"{sum(each.excused for each in entries)} recovered later than an idle machine may, which "
        f"was excused, the machine being slow. Seed {seed}, leases of {LEASE_SECONDS:g} s, a sweep "
        f"every {SWEEP_SECONDS:g} s, micro-batches of {MICRO_BATCH_ROWS} prompts. By the commit "
        f"of the code: {commits}."
    )


def rows(entries: Sequence[Entry], order: Sequence[str]) -> list[str]:
    """A line for each fault on each database."""
    pairs: dict[tuple[str, DatabaseKind], list[Entry]] = defaultdict(list)
    for each in entries:
        pairs[each.fault, each.database].append(each)
    return [
        row(fault, kind, pairs[fault, kind])
        for fault in order
        for kind in SHOWN_KINDS
        if (fault, kind) in pairs
    ]


def row(fault: str, kind: DatabaseKind, entries: Sequence[Entry]) -> str:
    """One fault on one database."""
    repeated = [count for each in entries for count in each.repeated]
    recoveries = [
        seconds for each in entries for seconds in each.recovery_seconds if seconds is not None
    ]
    cells = (
        fault,
        SHOWN_KINDS[kind],
        str(len(repeated)),
        str(sum(each.broke for each in entries)),
        str(sum(each.lost for each in entries)),
        str(sum(each.duplicated for each in entries)),
        f"{median(repeated):g}, {max(repeated)}",
        f"{median(recoveries):.1f}, {max(recoveries):.1f}" if recoveries else "-",
    )
    return "| " + " | ".join(cells) + " |"


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Two suites, one for each database, may end a turn at the same time."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)
