"""Plays the faults that this session's tests ask about, several at once."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from contextlib import closing
from typing import Any

import pytest

from tests.chaos.faults import FAULTS
from tests.chaos.players import play, turns_of
from tests.chaos.stage import DatabaseKind
from tests.chaos.verdict import Verdict

VerdictsByPair = Mapping[tuple[DatabaseKind, str], Sequence[Verdict]]
SEED = 1
# Most of a run is waiting.
PLAYERS = 4


@pytest.fixture(scope="session")
def verdicts(request: pytest.FixtureRequest) -> VerdictsByPair:
    """What each fault that is to be tested came to, on each of its databases."""
    items = [item for item in request.session.items if isinstance(item, pytest.Function)]
    parameters: list[Mapping[str, Any]] = [
        item.callspec.params for item in items if "verdicts" in item.fixturenames
    ]
    asked = [(FAULTS[each["name"]], each["kind"]) for each in parameters]
    turns = turns_of([pair for pair in asked if pair[0].possible()], runs=1)
    found: dict[tuple[DatabaseKind, str], list[Verdict]] = defaultdict(list)
    with closing(play(turns, players=PLAYERS, seed=SEED)) as played:
        for each in played:
            found[each.turn.kind, each.turn.fault] += each.verdicts
    return found
