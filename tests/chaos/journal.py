"""Every run of the fault suite, written down as it ends, so that a suite of hours goes on.

A line of docs/reliability.jsonl is a turn: some runs of one fault on one
database. The table in docs/reliability.md is made of it.
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from tests.chaos.players import Played, Turn
from tests.chaos.stage import DatabaseKind

ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True, kw_only=True)
class Entry:
    """What a turn came to.

    Attributes:
        fault: Its name.
        database: Where it was played.
        seed: Gave the random moments, with the runs' numbers.
        first: The number of the first run.
        commit: Of the code, with a "+" if it was changed since.
        broke: Runs that broke a promise.
        excused: Runs whose recovery a busy machine is to blame for.
        lost: Prompts without a result, of all runs.
        duplicated: Results too many, of all runs.
        repeated: Prompts that were begun again, of each run.
        recovery_seconds: Of each run; None where nothing had stopped.
    """

    fault: str
    database: DatabaseKind
    seed: int
    first: int
    commit: str
    broke: int
    excused: int
    lost: int
    duplicated: int
    repeated: tuple[int, ...]
    recovery_seconds: tuple[float | None, ...]

    @classmethod
    def of(cls, played: Played, *, seed: int, commit: str) -> Entry:
        turn, verdicts = played.turn, played.verdicts
        return cls(
            fault=turn.fault,
            database=turn.kind,
            seed=seed,
            first=turn.numbers.start,
            commit=commit,
            broke=sum(bool(each.problems) for each in verdicts),
            excused=sum(each.excuse is not None for each in verdicts),
            lost=sum(each.lost for each in verdicts),
            duplicated=sum(each.duplicated for each in verdicts),
            repeated=tuple(each.repeated for each in verdicts),
            recovery_seconds=tuple(
                None if each.recovery_seconds is None else round(each.recovery_seconds, 2)
                for each in verdicts
            ),
        )

    @property
    def runs(self) -> int:
        return len(self.repeated)

    def tells_of(self, turn: Turn) -> bool:
        """Whether all runs of the turn are among these."""
        return (self.fault, self.database, self.first) == (
            turn.fault,
            turn.kind,
            turn.numbers.start,
        ) and self.runs >= len(turn.numbers)


class Journal:
    """The file, with what was played more than once in it as often."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def add(self, entry: Entry) -> None:
        """Append a line; in one write, for several suites may do so at once."""
        line = json.dumps(asdict(entry), ensure_ascii=False, separators=(",", ":"))
        with self._path.open("a", encoding="utf-8") as file:
            file.write(line + "\n")

    def entries(self, *, seed: int) -> list[Entry]:
        """What is known of each turn with this seed: what was played last, if it is no shorter."""
        latest: dict[tuple[str, str, int], Entry] = {}
        for line in self._lines():
            document = json.loads(line)
            sequences = {key: tuple(document[key]) for key in ("repeated", "recovery_seconds")}
            entry = Entry(**{**document, **sequences})
            key = (entry.fault, entry.database, entry.first)
            if entry.seed == seed and (key not in latest or latest[key].runs <= entry.runs):
                latest[key] = entry
        return list(latest.values())

    def missing(self, turns: Sequence[Turn], *, seed: int) -> list[Turn]:
        """The turns that it does not tell of."""
        entries = self.entries(seed=seed)
        return [turn for turn in turns if not any(each.tells_of(turn) for each in entries)]

    def _lines(self) -> list[str]:
        return self._path.read_text(encoding="utf-8").splitlines() if self._path.exists() else []


def code_commit(root: Path = ROOT) -> str:
    """The last commit that changed anything but docs, with a "+" if there is more than that."""
    code = ("--", ".", ":!docs")
    if not (commit := _git(root, "log", "-1", "--format=%h", *code)):
        return "unknown"
    return commit + ("+" if _git(root, "status", "--porcelain", *code) else "")


def _git(root: Path, *arguments: str) -> str:
    try:
        ended = subprocess.run(
            ["git", *arguments], cwd=root, capture_output=True, text=True, check=False
        )
    except FileNotFoundError:
        return ""
    return ended.stdout.strip()
