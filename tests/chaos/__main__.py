"""The fault suite: real workers, real services, real damage.

    python -m tests.chaos [--runs 100] [--seed 0] [--jobs 4] [--fault NAME]
                          [--database sqlite|postgres] [--missing]

Plays every fault that many times, prints what each came to, and writes the rows
into docs/reliability.md as they grow. What is there when it is interrupted stays,
and --missing plays the rows that tell of fewer runs. Exits with 1 if a promise was
broken.
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
from tests.chaos.players import Turn, play, turns_of
from tests.chaos.report import Row, runs_in_report, shown_kind, update_report
from tests.chaos.stage import DatabaseKind
from tests.chaos.verdict import Verdict

REPORT = Path(__file__).resolve().parents[2] / "docs" / "reliability.md"


def main() -> int:
    arguments = parse_arguments()
    turns = turns_of(chosen_pairs(arguments), lambda fault: fault.runs(arguments.runs))
    if not turns:
        sys.exit("there is nothing to play: no such fault, or all of it is in the report")
    # A run of hours is in the background, where a shell has Ctrl-C ignored.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        return play_all(turns, arguments)
    except KeyboardInterrupt:
        return 130


def play_all(turns: Sequence[Turn], arguments: argparse.Namespace) -> int:
    """Play, print and report row by row; the exit code."""
    left: dict[tuple[str, DatabaseKind], int] = defaultdict(int)
    verdicts: dict[tuple[str, DatabaseKind], list[Verdict]] = defaultdict(list)
    for turn in turns:
        left[turn.fault, turn.kind] += 1
    broken = False
    with closing(play(turns, players=arguments.jobs, seed=arguments.seed)) as played:
        for each in played:
            key = (each.turn.fault, each.turn.kind)
            left[key] -= 1
            verdicts[key] += each.verdicts
            broken = broken or any(verdict.problems for verdict in each.verdicts)
            row = Row.of(*key, verdicts[key])
            if not left[key]:
                print(row.line(), f"({sum(map(bool, left.values()))} rows to go)", flush=True)
            # A row that grows must not take the place of one that tells of more.
            tells_more = row.runs >= runs_in_report(REPORT).get((row.fault, row.kind), 0)
            if not arguments.no_report and (tells_more or not left[key]):
                update_report(REPORT, [row], seed=arguments.seed, order=list(faults.FAULTS))
    return 1 if broken else 0


def chosen_pairs(arguments: argparse.Namespace) -> list[tuple[Fault, DatabaseKind]]:
    """What to play; those that this machine does not let happen are named and left out."""
    kinds: tuple[DatabaseKind, ...] = (arguments.database,) if arguments.database else BOTH
    done = runs_in_report(REPORT) if arguments.missing else {}
    pairs = []
    for fault in faults.FAULTS.values():
        if arguments.fault not in fault.name:
            continue
        if not fault.possible():
            print(f"{fault.name}: this machine does not let it happen", flush=True)
            continue
        pairs += [
            (fault, kind)
            for kind in kinds
            if kind in fault.databases
            and done.get((fault.name, shown_kind(kind)), 0) < fault.runs(arguments.runs)
        ]
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
    parser.add_argument("--missing", action="store_true", help="only rows the report lacks")
    parser.add_argument("--no-report", action="store_true", help="leave docs alone")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
