from __future__ import annotations

import sys
from types import ModuleType

import pytest

from jobs.catalogue import CatalogueModel
from jobs.database import Database
from jobs.settings import Settings
from jobs.store.workers import register_worker
from tests.unit.worker.bench import Bench
from tests.unit.worker.scripted_engine import ScriptedEngine, ScriptedLoader
from worker.log import get_logger
from worker.models.engine_host import EngineHost


@pytest.fixture
def bench(sqlite_database: Database, settings: Settings, monkeypatch: pytest.MonkeyPatch) -> Bench:
    engine = ScriptedEngine()
    loader = ScriptedLoader(engine)
    # In the place of the engine on transformers, so that torch is not imported.
    stand_in = ModuleType("engine.load")
    stand_in.load_engine = loader  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, stand_in.__name__, stand_in)
    register_worker(
        sqlite_database,
        worker_id="w",
        hostname="box",
        process=1,
        version="0",
        models=["tiny-bloom"],
    )
    catalogue = {
        "tiny-bloom": CatalogueModel(alias="tiny-bloom", hub_id="none/bloom"),
        "tiny-flan": CatalogueModel(alias="tiny-flan", hub_id="none/flan"),
        "null": CatalogueModel(alias="null", engine="null"),
    }
    host = EngineHost(
        settings=settings,
        catalogue=catalogue,
        database=sqlite_database,
        worker_id="w",
        log=get_logger(),
    )
    return Bench(sqlite_database, settings, engine, loader, host)
