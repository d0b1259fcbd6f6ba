"""Nothing is lost and nothing done twice: each fault of `make chaos` once on each database."""

from __future__ import annotations

import pytest

from tests.chaos.conftest import VerdictsByPair
from tests.chaos.fault import BOTH
from tests.chaos.faults import FAULTS
from tests.chaos.stage import DatabaseKind

# The first test that asks plays them all.
pytestmark = [pytest.mark.acceptance, pytest.mark.timeout(900)]
PAIRS = [
    (kind, fault.name) for kind in BOTH for fault in FAULTS.values() if kind in fault.databases
]


@pytest.mark.parametrize(("kind", "name"), PAIRS)
def test_nothing_is_lost_and_nothing_done_twice(
    verdicts: VerdictsByPair, kind: DatabaseKind, name: str
) -> None:
    if not FAULTS[name].possible():
        pytest.skip("this user may not do such damage")

    (verdict,) = verdicts[kind, name]

    assert list(verdict.problems) == []
    assert verdict.lost + verdict.duplicated == 0
