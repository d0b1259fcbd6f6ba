"""How often the fault suite plays each fault in `make test`, and the stage it keeps."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from tests.chaos.stage import Servers, StageKeeper
from tests.chaos.verdict import FaultFree


@pytest.fixture(scope="module")
def stages() -> Iterator[StageKeeper]:
    with ExitStack() as services, ExitStack() as stack:
        keeper = StageKeeper(Servers(services))
        stack.callback(keeper.close)
        yield keeper


@pytest.fixture(scope="module")
def fault_free() -> FaultFree:
    return FaultFree()
