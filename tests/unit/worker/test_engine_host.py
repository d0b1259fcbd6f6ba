"""The engine gets what the settings say, and frees what it holds before the next."""

from __future__ import annotations

import sys
from dataclasses import replace
from types import ModuleType
from typing import Any

import pytest

from engine.interface import RequestList
from engine.plan.demands import Workload
from jobs.catalogue import CatalogueModel
from jobs.database import Database
from jobs.settings import Settings
from tests.unit.worker.scripted_engine import ScriptedEngine, ScriptedLoader
from worker.log import get_logger
from worker.models.engine_host import EngineHost


@pytest.fixture
def loader(monkeypatch: pytest.MonkeyPatch) -> ScriptedLoader:
    """In the place of the engine on transformers, so that torch is not imported."""
    loader = ScriptedLoader(ScriptedEngine())
    stand_in = ModuleType("engine.load")
    stand_in.load_engine = loader  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, stand_in.__name__, stand_in)
    return loader


def host(database: Database, settings: Settings) -> EngineHost:
    return EngineHost(
        settings=settings,
        catalogue={
            "tiny-bloom": CatalogueModel(alias="tiny-bloom", hub_id="none/bloom"),
            "null": CatalogueModel(alias="null", engine="null"),
        },
        database=database,
        worker_id="w",
        log=get_logger(),
    )


def told(database: Database, loader: ScriptedLoader, settings: Settings) -> dict[str, Any]:
    host(database, settings).engine_for("tiny-bloom", lambda: False)
    return loader.told


def test_the_engine_is_told_what_is_set(
    sqlite_database: Database, settings: Settings, loader: ScriptedLoader
) -> None:
    given = replace(
        settings,
        device="cpu",
        micro_batch_rows=8,
        compute_mode="w8a16",
        gpu_memory=2**30,
        cpu_memory=2**31,
        kv_cache="int8",
        disk_readers=3,
        shard_size=40,
    )
    assert told(sqlite_database, loader, given) == {
        "device": "cpu",
        "stores": settings.home / "stores",
        "micro_batch_rows": 8,
        "compute_mode": "w8a16",
        "gpu_bytes": 2**30,
        "cpu_bytes": 2**31,
        "kv_cache": "int8",
        "disk_readers": 3,
        "throughputs_cache": settings.home / "throughputs.json",
        "workload": Workload(prompt_tokens=128, new_tokens=128, shard_rows=40),
    }


def test_what_is_not_set_is_left_to_the_engine(
    sqlite_database: Database, settings: Settings, loader: ScriptedLoader
) -> None:
    heard = told(sqlite_database, loader, settings)
    assert [heard[name] for name in ("micro_batch_rows", "gpu_bytes", "cpu_bytes")] == [None] * 3
    assert (heard["compute_mode"], heard["kv_cache"]) == ("llm_int8", "float")


@pytest.mark.parametrize(("setting", "rows"), [(None, 64), (3, 3)])
def test_the_null_engine_has_64_rows_or_what_is_set(
    sqlite_database: Database, settings: Settings, setting: int | None, rows: int
) -> None:
    chosen = host(sqlite_database, replace(settings, micro_batch_rows=setting))
    engine = chosen.engine_for("null", lambda: False)
    asked: list[int] = []

    class Feed(RequestList):
        def take(self, at_most: int) -> list[Any]:
            asked.append(at_most)
            return []

    assert list(engine.generate(Feed([]), should_stop=lambda: False)) == []
    assert asked == [rows]
