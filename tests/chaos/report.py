"""The table in docs/reliability.md, written by the suite that fills it."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from tests.chaos.stage import LEASE_SECONDS, MICRO_BATCH_ROWS, SWEEP_SECONDS, DatabaseKind
from tests.chaos.verdict import Verdict

SHOWN_KINDS: dict[DatabaseKind, str] = {"sqlite": "SQLite", "postgres": "Postgres"}
BEGIN, END = "<!-- the table: made by tests/chaos -->", "<!-- the table ends -->"
HEAD = (
    "| fault | database | runs | broke a promise | lost | duplicated "
    "| repeated prompts (median, max) | recovery seconds (median, max) |"
    "\n|---|---|---|---|---|---|---|---|"
)


@dataclass(frozen=True, kw_only=True)
class Row:
    """One fault on one database."""

    fault: str
    kind: str
    cells: tuple[str, ...]

    @classmethod
    def of(cls, fault: str, kind: DatabaseKind, verdicts: Sequence[Verdict]) -> Row:
        recoveries = [
            each.recovery_seconds for each in verdicts if each.recovery_seconds is not None
        ]
        repeated = [each.repeated for each in verdicts]
        return cls(
            fault=fault,
            kind=shown_kind(kind),
            cells=(
                str(len(verdicts)),
                str(sum(bool(each.problems) for each in verdicts)),
                str(sum(each.lost for each in verdicts)),
                str(sum(each.duplicated for each in verdicts)),
                f"{median(repeated):g}, {max(repeated)}" if repeated else "-",
                f"{median(recoveries):.1f}, {max(recoveries):.1f}" if recoveries else "-",
            ),
        )

    @classmethod
    def read(cls, line: str) -> Row:
        fault, kind, *cells = (cell.strip() for cell in line.strip().strip("|").split("|"))
        return cls(fault=fault, kind=kind, cells=tuple(cells))

    @property
    def runs(self) -> int:
        return int(self.cells[0])

    def line(self) -> str:
        return "| " + " | ".join((self.fault, self.kind, *self.cells)) + " |"


def update_report(path: Path, rows: Sequence[Row], *, seed: int, order: Sequence[str]) -> None:
    """Put rows into the report in the place of their older ones.

    Args:
        path: The Markdown file, which holds the two marks.
        rows: What was just measured.
        seed: Where its random moments came from.
        order: The faults in the table's order; rows of others are dropped.
    """
    with _alone(path.parent):
        before, _, rest = path.read_text(encoding="utf-8").partition(BEGIN)
        _, _, after = rest.partition(END)
        kept = {(row.fault, row.kind): row for row in (*_rows_of(rest), *rows)}
        places = {fault: place for place, fault in enumerate(order)}
        shown = sorted(
            (row for row in kept.values() if row.fault in places),
            key=lambda row: (places[row.fault], row.kind != "SQLite"),
        )
        made = (
            f"Seed {seed}, leases of {LEASE_SECONDS:g} s, a sweep every {SWEEP_SECONDS:g} s, "
            f"micro-batches of {MICRO_BATCH_ROWS} prompts."
        )
        lines = [BEGIN, "", made, "", HEAD, *(row.line() for row in shown), "", END]
        # In one step, so that whoever reads or ends this process finds a whole file.
        new = path.with_suffix(".new")
        new.write_text(before + "\n".join(lines) + after, encoding="utf-8")
        new.replace(path)


def runs_in_report(path: Path) -> dict[tuple[str, str], int]:
    """How many runs each row tells of, by fault and database as they are shown."""
    _, _, rest = path.read_text(encoding="utf-8").partition(BEGIN)
    return {(row.fault, row.kind): row.runs for row in _rows_of(rest)}


def shown_kind(kind: DatabaseKind) -> str:
    return SHOWN_KINDS[kind]


def _rows_of(table: str) -> list[Row]:
    """The rows up to the table's end; those with other columns are of an older suite."""
    lines = table.partition(END)[0].splitlines()
    rows = map(Row.read, filter(_is_row, lines))
    return [row for row in rows if 2 + len(row.cells) == HEAD.partition("\n")[0].count(" | ") + 1]


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Two suites, one for each database, may end a fault at the same time."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def _is_row(line: str) -> bool:
    return line.startswith("| ") and not line.startswith("| fault |")
