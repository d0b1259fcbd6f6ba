"""Nothing is lost and nothing done twice: a short cut of `make chaos`.

One run of each fault by default, on SQLite and Postgres in turn, which is what
`make test` has time for. `--chaos-runs 10` plays each ten times on both.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.chaos.fault import BOTH, Fault, play_once
from tests.chaos.faults import FAULTS
from tests.chaos.stage import DatabaseKind, Needs, StageKeeper
from tests.chaos.verdict import FaultFree

pytestmark = pytest.mark.acceptance
SEED = 1


def short_cut() -> Iterator[tuple[DatabaseKind, str]]:
    """Each fault once, on the one database or the other.

    Faults that need a stage of their own share it; the many others take turns.
    """
    stages = list(dict.fromkeys(fault.needs for fault in FAULTS.values()))
    for place, fault in enumerate(FAULTS.values()):
        turn = place if fault.needs == Needs() else stages.index(fault.needs)
        yield fault.databases[turn % len(fault.databases)], fault.name


def all_pairs() -> Iterator[tuple[DatabaseKind, str]]:
    return ((kind, fault.name) for fault in FAULTS.values() for kind in fault.databases)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    runs = metafunc.config.getoption("--chaos-runs")
    pairs = list(short_cut() if runs == 1 else all_pairs())
    # Those that need the same stage one after the other, so that it is set up once.
    pairs.sort(key=lambda pair: (BOTH.index(pair[0]), str(FAULTS[pair[1]].needs)))
    metafunc.parametrize(("kind", "name"), pairs)
    metafunc.parametrize("number", range(runs))


def test_nothing_is_lost_and_nothing_done_twice(
    stages: StageKeeper, fault_free: FaultFree, kind: DatabaseKind, name: str, number: int
) -> None:
    fault: Fault = FAULTS[name]
    if not fault.possible():
        pytest.skip("this user may not do such damage")
    stage = stages.stage(fault.needs, kind)

    verdict = play_once(fault, stage, fault_free, seed=SEED, number=number)

    if verdict.problems:
        # The next fault must not meet what this one left behind.
        stages.close()
    assert verdict.problems == ()
    assert (verdict.lost, verdict.duplicated) == (0, 0)
