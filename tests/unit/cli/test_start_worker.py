from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType

import pytest

from jobs.settings import Settings
from tests.unit.cli.conftest import Tgp

Started = list[tuple[Settings, tuple[str, ...]]]


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> Started:
    """What the worker was started with; it ends at once with code 3."""
    calls: Started = []

    def start_worker(settings: Settings, *, models: tuple[str, ...]) -> int:
        calls.append((settings, models))
        return 3

    module = ModuleType("worker.queue.celery_app")
    module.start_worker = start_worker  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "worker.queue.celery_app", module)
    return calls


def test_it_serves_the_whole_catalogue(tgp: Tgp, started: Started) -> None:
    assert tgp("worker").exit_code == 3
    _, models = started[0]
    assert {"bloom-7b1", "gpt-neox-20b", "tiny-flan"} <= set(models)


def test_it_serves_what_it_is_told_with_the_settings_it_is_told(tgp: Tgp, started: Started) -> None:
    tgp(
        *("worker", "--model", "bloom-7b1", "--model", "google/flan-ul2", "--model", "bloom-7b1"),
        *("--device", "cpu", "--lease-seconds", "5", "--json"),
    )
    settings, models = started[0]
    assert models == ("bloom-7b1", "flan-ul2")
    assert (settings.device, settings.lease_seconds, settings.log_format) == ("cpu", 5.0, "json")


def test_it_takes_what_the_engine_is_told(tgp: Tgp, started: Started) -> None:
    tgp(
        *("worker", "--gpu-memory", "14.5GiB", "--cpu-memory", "10GB", "--kv-cache", "int8"),
        *("--compute-mode", "w8a16", "--micro-batch-rows", "8", "--shards-at-once", "3"),
        *("--disk-readers", "4"),
    )
    settings, _ = started[0]
    assert (settings.gpu_memory, settings.cpu_memory) == (29 * 2**29, 10**10)
    assert (settings.compute_mode, settings.kv_cache) == ("w8a16", "int8")
    assert (settings.micro_batch_rows, settings.shards_at_once, settings.disk_readers) == (8, 3, 4)


def test_a_size_without_a_unit_is_refused(tgp: Tgp, started: Started) -> None:
    result = tgp("worker", "--gpu-memory", "14.5")
    assert result.exit_code == 2
    assert "--gpu-memory: '14.5' is not usable; expected a number with a unit" in result.stderr
    assert started == []


def test_a_model_outside_the_catalogue_is_refused(tgp: Tgp, started: Started) -> None:
    result = tgp("worker", "--model", "bloom-7b")
    assert result.exit_code == 2
    assert "did you mean 'bloom-7b1'?" in result.stderr
    assert started == []


def test_without_torch_it_says_what_to_install(
    tgp: Tgp, started: Started, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cli.worker_extra.is_installed", lambda _: False)
    result = tgp("worker")
    assert result.exit_code == 1
    assert "pip install -c constraints.txt '.[worker]'" in result.stderr
    assert started == []


def test_the_null_engine_needs_no_torch(
    tgp: Tgp, started: Started, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cli.worker_extra.is_installed", lambda _: False)
    path = tmp_path / "null.toml"
    path.write_text('[models.nothing]\nengine = "null"\n')
    tgp("worker", "--model", "nothing", "--catalogue", path)
    assert started[0][1] == ("nothing",)
