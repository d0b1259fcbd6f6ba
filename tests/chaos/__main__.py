"""The fault suite: real workers, real services, real damage.

    python -m tests.chaos [--runs 100] [--seed 0] [--jobs 4] [--fault NAME]
                          [--database sqlite|postgres] [--missing]

Plays every fault that many times, prints what each came to, writes every run into
docs/reliability.jsonl as it ends and makes the table in docs/reliability.md of them.
After an interruption, --missing goes on. Exits with 1 if a promise was broken.
"""

from __future__ import annotations

import argparse
import signal
import sys
from collections import defaultdict
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

from tests.chaos import faults
from tests.chaos.fault import BOTH, Fault
from tests.chaos.journal import Entry, Journal, code_commit
from tests.chaos.players import Turn, play, turns_of
from tests.chaos.report import row, update_report
from tests.chaos.stage import DatabaseKind

DOCS = Path(__file__).resolve().parents[2] / "docs"
REPORT, JOURNAL = DOCS / "reliability.md", Journal(DOCS / "reliability.jsonl")


def main() -> int:
    arguments = parse_arguments()
    turns = turns_of(chosen_pairs(arguments), arguments.runs)
    if arguments.missing:
        turns = JOURNAL.missing(turns, seed=arguments.seed)
    if not turns:
        sys.exit("there is nothing to play: no such fault, or all of it is in the report")
    # A run of hours is in the background, where a shell has Ctrl-C ignored.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        return play_all(turns, arguments)
    except KeyboardInterrupt:
        return 130


def play_all(turns: Sequence[Turn], arguments: argparse.Namespace) -> int:
    """Play, print and report turn by turn; the exit code."""
    left: dict[tuple[str, DatabaseKind], int] = defaultdict(int)
    entries: dict[tuple[str, DatabaseKind], list[Entry]] = defaultdict(list)
    for turn in turns:
        left[turn.fault, turn.kind] += 1
    commit = code_commit()
    with closing(play(turns, players=arguments.jobs, seed=arguments.seed)) as played:
        for each in played:
            key = (each.turn.fault, each.turn.kind)
            left[key] -= 1
            entries[key].append(Entry.of(each, seed=arguments.seed, commit=commit))
            if not left[key]:
                rows_left = sum(map(bool, left.values()))
                print(row(*key, entries[key]), f"({rows_left} rows to go)", flush=True)
            if not arguments.no_report:
                JOURNAL.add(entries[key][-1])
                update_report(REPORT, JOURNAL, seed=arguments.seed, order=list(faults.FAULTS))
    return int(any(entry.broke for some in entries.values() for entry in some))


def chosen_pairs(arguments: argparse.Namespace) -> list[tuple[Fault, DatabaseKind]]:
    """What to play; those that this machine does not let happen are named and left out."""
    kinds: tuple[DatabaseKind, ...] = (arguments.database,) if arguments.database else BOTH
    pairs = []
    for fault in faults.FAULTS.values():
        if arguments.fault not in fault.name:
            continue
        if not fault.possible():
            print(f"{fault.name}: this machine does not let it happen", flush=True)
            continue
        pairs += [(fault, kind) for kind in kinds if kind in fault.databases]
    return pairs


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m tests.chaos",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--runs", type=int, default=100, help="runs of each fault")
    parser.add_argument("--seed", type=int, default=0, help="gives the random moments")
    parser.add_argument("--jobs", type=int, default=1, help="runs that are played at once")
    parser.add_argument("--fault", default="", help="only faults with this in their name")
    parser.add_argument("--database", choices=BOTH, help="only on this one")
    parser.add_argument("--missing", action="store_true", help="only what the journal lacks")
    parser.add_argument("--no-report", action="store_true", help="leave docs alone")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
