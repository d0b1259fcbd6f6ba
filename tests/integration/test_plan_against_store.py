"""A plan made from a configuration alone equals what a real store takes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig

from engine.interface import ModelSource
from engine.model.place import place_model
from engine.plan.demands import ModelDemands, Workload
from engine.plan.from_layout import DTYPES, demands_of_config
from engine.plan.on_this_machine import (
    DEFAULT_WORKLOAD,
    PlacementOptions,
    plan_demands,
    plan_on_this_machine,
)
from engine.plan.plan import Budgets, CannotRunError, Plan
from engine.plan.rates import T4
from engine.plan.search import make_plan
from engine.store.prepare import Int8Store, prepare_store
from engine.weights.loader import load_store
from jobs.catalogue import CatalogueModel
from jobs.database import Database
from jobs.settings import Settings
from tests.tiny_checkpoints import ALIASES, checkpoint_folder, tiny_tokenizer
from worker.log import get_logger
from worker.models.engine_host import EngineHost
from worker.models.plan_model import plan_model

TOLERANCE = 0.02
# Data starts at a multiple of 4096, after names and shapes.
HEADER_BYTES = 8192
PLENTY = 10**12
ONE_ROW = Workload(prompt_tokens=8, new_tokens=8, shard_rows=1)


@pytest.fixture(params=[True, False], ids=["float16", "float32"])
def on_gpu(request: pytest.FixtureRequest) -> bool:
    """Which dtype is planned and stored; both can be made without a GPU."""
    return bool(request.param)


@pytest.fixture(params=ALIASES)
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    return checkpoint_folder(request.param, tmp_path)


@pytest.fixture
def store(folder: Path, tmp_path: Path, on_gpu: bool) -> Int8Store:
    return prepare_store(
        ModelSource(alias="tiny", folder=folder),
        tmp_path / "stores",
        device=torch.device("cpu"),
        on_progress=lambda _progress: None,
        should_stop=lambda: False,
        dtype=DTYPES[on_gpu],
    )


@pytest.fixture
def model(folder: Path, on_gpu: bool) -> ModelDemands:
    return demands_of_config(AutoConfig.from_pretrained(folder), "tiny", on_gpu=on_gpu)


@pytest.fixture
def plan(model: ModelDemands) -> Plan:
    """A plan with blocks in every tier: the smallest card, and RAM for a part of the rest."""
    nothing = Budgets(gpu_bytes=0, cpu_bytes=0, disk_bytes=PLENTY)
    with pytest.raises(CannotRunError) as refused:
        make_plan(model, ONE_ROW, nothing, T4)
    largest = max(block.weight_bytes for block in model.blocks)
    budgets = Budgets(
        gpu_bytes=refused.value.short["GPU memory"] + largest // 2,
        cpu_bytes=refused.value.short["CPU memory"] + largest,
        disk_bytes=PLENTY,
    )
    return make_plan(model, ONE_ROW, budgets, T4)


def test_the_loader_takes_in_every_tier_what_was_planned(store: Int8Store, plan: Plan) -> None:
    with load_store(
        store,
        plan.placement,
        torch.device("cpu"),
        on_progress=lambda _progress: None,
        should_stop=lambda: False,
    ) as loaded:
        taken = {tier: loaded.bytes_at(tier) for tier in ("resident", "ram")}
    assert taken == pytest.approx(
        {"resident": plan.memory.resident_bytes, "ram": plan.memory.ram_bytes}, rel=TOLERANCE
    )


def test_the_slots_take_what_was_planned(store: Int8Store, plan: Plan) -> None:
    model = place_model(
        store,
        plan.placement,
        torch.device("cpu"),
        tokenizer=tiny_tokenizer(),
        mode="w8a16",
        on_progress=lambda _progress: None,
        should_stop=lambda: False,
    )
    taken = [slot.flat.numel() for slot in model.slots]
    model.free()
    assert len(taken) == plan.slots > 0
    assert sum(taken) == pytest.approx(plan.memory.slot_bytes, rel=TOLERANCE)


def test_the_store_takes_what_was_planned_and_headers(store: Int8Store, plan: Plan) -> None:
    weights = [file for name, file in store.manifest.files.items() if name.endswith("tensors")]
    headers = sum(file.bytes for file in weights) - plan.memory.store_bytes
    assert 0 < headers <= len(weights) * HEADER_BYTES


def test_the_plan_that_is_shown_is_the_plan_that_a_worker_follows(
    folder: Path,
    tmp_path: Path,
    settings: Settings,
    sqlite_database: Database,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # given budgets with which some blocks stream
    tight = replace(settings, device="cpu", stores=tmp_path / "stores", shard_size=40)
    source = ModelSource(alias="tiny", folder=folder)
    rows = replace(DEFAULT_WORKLOAD, shard_rows=tight.shard_size)
    with pytest.raises(CannotRunError) as refused:
        plan_model(replace(tight, cpu_memory=0), source, rows)
    least_bytes = refused.value.short["CPU memory"]
    tight = replace(tight, cpu_memory=least_bytes + 1024)
    # when a worker loads the model
    followed: list[Plan] = []

    def noted(store: Int8Store, options: PlacementOptions, device: torch.device) -> Plan:
        followed.append(plan_on_this_machine(store, options, device))
        return followed[-1]

    monkeypatch.setattr("engine.load.plan_on_this_machine", noted)
    host = EngineHost(
        settings=tight,
        catalogue={"tiny": CatalogueModel(alias="tiny", folder=folder)},
        database=sqlite_database,
        worker_id="w",
        log=get_logger(),
    )
    host.engine_for("tiny", lambda: False)
    host.unload()
    # then it follows the plan that `tgp-jobs plan` shows
    (plan,) = followed
    shown = plan_model(tight, source, rows)
    assert (shown.placement, shown.slots) == (plan.placement, plan.slots)
    assert (shown.rows, shown.encoded_rows) == (plan.rows, plan.encoded_rows)
    assert (shown.workload, shown.throughputs) == (plan.workload, plan.throughputs)
    assert shown.budgets.cpu_bytes == plan.budgets.cpu_bytes == tight.cpu_memory
    assert "disk" in plan.placement.values()


def test_a_budget_of_nothing_is_not_what_is_free(model: ModelDemands, tmp_path: Path) -> None:
    # given that a plan within what is free here is to be had
    on_cpu: dict[str, Any] = {"on_gpu": False, "stored_bytes": 0}
    plan_demands(model, tmp_path, PlacementOptions(workload=ONE_ROW), **on_cpu)
    for options in (
        PlacementOptions(workload=ONE_ROW, cpu_bytes=0),
        PlacementOptions(workload=ONE_ROW, disk_bytes=0),
    ):
        with pytest.raises(CannotRunError):
            plan_demands(model, tmp_path, options, **on_cpu)


def test_what_is_stored_already_need_not_be_free(
    model: ModelDemands, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    full = Budgets(gpu_bytes=None, cpu_bytes=PLENTY, disk_bytes=0)
    monkeypatch.setattr("engine.plan.on_this_machine.machine_budgets", lambda *_, **__: full)
    options = PlacementOptions(workload=ONE_ROW)
    with pytest.raises(CannotRunError):
        plan_demands(model, tmp_path, options, on_gpu=False, stored_bytes=0)
    plan_demands(model, tmp_path, options, on_gpu=False, stored_bytes=model.store_bytes)
