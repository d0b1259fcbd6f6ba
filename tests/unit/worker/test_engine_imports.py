"""The engine is imported before a claim, and a process that dies of that is counted."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from types import ModuleType

import pytest

from jobs.store.reading import job_report
from tests.ledger import expire_lease, shard, shard_ids, submit
from tests.unit.worker.bench import Bench
from worker.log import get_logger
from worker.models import engine_imports
from worker.models.engine_imports import ENGINE_MODULE, EngineImports

OnImport = Callable[[Callable[[], object]], None]


@pytest.fixture
def importing(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> OnImport:
    """A process without the engine; what is given happens when it is imported."""
    stand_in = sys.modules[ENGINE_MODULE]
    monkeypatch.delitem(sys.modules, ENGINE_MODULE)

    def on_import(happens: Callable[[], object]) -> None:
        def import_module(name: str) -> ModuleType:
            happens()
            monkeypatch.setitem(sys.modules, name, stand_in)
            return stand_in

        monkeypatch.setattr(engine_imports, "import_module", import_module)

    return on_import


def statuses(bench: Bench, job_id: str) -> list[tuple[str, int]]:
    rows = (shard(bench.database, each) for each in shard_ids(bench.database, job_id))
    return [(row.status, row.attempt) for row in rows]


def test_the_engine_is_imported_while_nothing_is_claimed(bench: Bench, importing: OnImport) -> None:
    job_id = submit(bench.database)
    seen: list[list[tuple[str, int]]] = []
    importing(lambda: seen.append(statuses(bench, job_id)))
    assert bench.run(job_id) == "finished"
    assert seen == [[("queued", 0)]]


def test_an_import_that_outlasts_the_lease_is_no_death(bench: Bench, importing: OnImport) -> None:
    # given an import during which every lease there is runs out
    job_id = submit(bench.database)
    (shard_id,) = shard_ids(bench.database, job_id)
    importing(lambda: expire_lease(bench.database, shard_id))
    assert bench.run(job_id) == "finished"
    row = shard(bench.database, shard_id)
    assert (row.attempt, row.crashes, row.load_crashes) == (1, 0, 0)


def test_the_null_engine_and_old_messages_import_nothing(bench: Bench, importing: OnImport) -> None:
    def fail() -> None:
        raise AssertionError("imported")

    job_id = submit(bench.database, model="null")
    importing(fail)
    assert bench.run(job_id) == "finished"
    assert bench.run(job_id) == "not ours"
    assert bench.runner().run(10**6) == "not ours"


def test_an_import_that_fails_ends_the_job_with_its_reason(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    # given an engine that cannot be imported
    monkeypatch.setitem(sys.modules, ENGINE_MODULE, None)
    job_id = submit(bench.database)
    assert bench.run(job_id) == "job failed"
    assert "ModuleNotFoundError" in str(job_report(bench.database, job_id).error_message)


def test_a_death_while_importing_leaves_the_import_to_the_load(
    importing: OnImport, monkeypatch: pytest.MonkeyPatch
) -> None:
    # given a child that is killed in mid-import
    imports, log = EngineImports(), get_logger()
    importing(lambda: os.kill(os.getpid(), signal.SIGKILL))
    child = os.fork()
    if child == 0:  # pragma: no cover - another process
        imports.make(log)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    # when the next one is asked
    tries: list[None] = []
    importing(lambda: tries.append(None))
    imports.make(log)
    # then it leaves it alone, and only until a load has done it
    assert tries == []
    with monkeypatch.context() as loaded:
        loaded.setitem(sys.modules, ENGINE_MODULE, ModuleType("loaded"))
        imports.make(log)
    imports.make(log)
    assert tries == [None]
