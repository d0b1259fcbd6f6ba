"""Nothing is lost and nothing done twice: a short cut of `make chaos`.

One run of each fault by default, on SQLite and Postgres in turn, which is what
`make test` has time for. `--chaos-runs 10` plays each ten times on both,
as `make test` does on CI.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.chaos.conftest import VerdictsByPair
from tests.chaos.fault import BOTH
from tests.chaos.faults import FAULTS
from tests.chaos.stage import DatabaseKind, Needs

# The first test that asks plays them all: 750 runs on CI.
pytestmark = [pytest.mark.acceptance, pytest.mark.timeout(3600)]


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
    pairs = sorted(short_cut() if runs == 1 else all_pairs(), key=lambda pair: BOTH.index(pair[0]))
    metafunc.parametrize(("kind", "name"), pairs)


def test_nothing_is_lost_and_nothing_done_twice(
    verdicts: VerdictsByPair, pytestconfig: pytest.Config, kind: DatabaseKind, name: str
) -> None:
    if not FAULTS[name].possible():
        pytest.skip("this user may not do such damage")

    played = verdicts[kind, name]

    assert [problem for verdict in played for problem in verdict.problems] == []
    assert sum(verdict.lost + verdict.duplicated for verdict in played) == 0
    assert len(played) == pytestconfig.getoption("--chaos-runs")
