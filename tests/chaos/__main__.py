"""The fault suite: real workers, real services, real damage.

    python -m tests.chaos [--runs 100] [--seed 0] [--fault NAME] [--database sqlite|postgres]

Plays every fault that many times, prints what each came to, and writes the
rows of those that were played into docs/reliability.md. Exits with 1 if a
promise was broken.
"""

from __future__ import annotations

import argparse
import sys
from contextlib import ExitStack
from pathlib import Path

from tests.chaos import faults
from tests.chaos.fault import BOTH, Fault, play_once
from tests.chaos.report import Row, update_report
from tests.chaos.stage import DatabaseKind, Servers, StageKeeper
from tests.chaos.verdict import FaultFree, Verdict

REPORT = Path(__file__).resolve().parents[2] / "docs" / "reliability.md"


def main() -> int:
    arguments = parse_arguments()
    kinds: tuple[DatabaseKind, ...] = (arguments.database,) if arguments.database else BOTH
    chosen = [each for name, each in faults.FAULTS.items() if arguments.fault in name]
    if not chosen:
        sys.exit(f"no fault has {arguments.fault!r} in its name")
    broken = False
    with ExitStack() as services, ExitStack() as stack:
        keeper = StageKeeper(Servers(services))
        stack.callback(keeper.close)
        fault_free = FaultFree()
        for fault in sorted(chosen, key=lambda each: str(each.needs)):
            for kind in (kind for kind in kinds if kind in fault.databases):
                verdicts = play(fault, kind, keeper, fault_free, arguments)
                row = Row.of(fault.name, kind, verdicts)
                print(row.line(), flush=True)
                broken = broken or any(verdict.problems for verdict in verdicts)
                if verdicts and not arguments.no_report:
                    update_report(REPORT, [row], seed=arguments.seed, order=list(faults.FAULTS))
    return 1 if broken else 0


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description=__doc__)
    parser.add_argument("--runs", type=int, default=100, help="runs of each fault")
    parser.add_argument("--seed", type=int, default=0, help="gives the random moments")
    parser.add_argument("--fault", default="", help="only faults with this in their name")
    parser.add_argument("--database", choices=BOTH, help="only on this one")
    parser.add_argument("--no-report", action="store_true", help="leave docs alone")
    return parser.parse_args()


def play(
    fault: Fault,
    kind: DatabaseKind,
    keeper: StageKeeper,
    fault_free: FaultFree,
    arguments: argparse.Namespace,
) -> list[Verdict]:
    """All runs of a fault on one database; what went wrong is printed as it does."""
    if not fault.possible():
        print(f"{fault.name}: this machine does not let it happen", flush=True)
        return []
    verdicts = []
    for number in range(arguments.runs):
        stage = keeper.stage(fault.needs, kind)
        verdict = play_once(fault, stage, fault_free, seed=arguments.seed, number=number)
        verdicts.append(verdict)
        for problem in verdict.problems:
            print(f"  run {number} on {kind}, {stage.folder}: {problem}", flush=True)
        if verdict.problems:
            # The next run must not meet what this one left behind.
            keeper.close()
    return verdicts


if __name__ == "__main__":
    sys.exit(main())
