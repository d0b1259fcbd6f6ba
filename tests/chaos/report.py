"""The table in docs/reliability.md, written by the suite that fills it."""

from __future__ import annotations

import fcntl
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from tests.chaos.stage import LEASE_SECONDS, MICRO_BATCH_ROWS, SWEEP_SECONDS, DatabaseKind
from tests.chaos.verdict import Verdict

BEGIN, END = "<!-- the table: made by tests/chaos -->", "<!-- the table ends -->"
HEAD = (
    "| fault | database | runs | lost | duplicated | repeated prompts (median, max) "
    "| recovery seconds (median, max) |\n|---|---|---|---|---|---|---|"
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
            kind={"sqlite": "SQLite", "postgres": "Postgres"}[kind],
            cells=(
                str(len(verdicts)),
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
    with path.open("r+", encoding="utf-8") as file:
        # Two suites, one for each database, may end a fault at the same time.
        fcntl.flock(file, fcntl.LOCK_EX)
        before, _, rest = file.read().partition(BEGIN)
        table, _, after = rest.partition(END)
        kept = {
            (row.fault, row.kind): row for row in map(Row.read, filter(_is_row, table.splitlines()))
        }
        kept |= {(row.fault, row.kind): row for row in rows}
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
        file.seek(0)
        file.truncate()
        file.write(before + "\n".join(lines) + after)


def _is_row(line: str) -> bool:
    return line.startswith("| ") and not line.startswith("| fault |")
